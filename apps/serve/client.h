// A client of a live server in C++, for measuring and for tests. Everything in it waits.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "apps/serve/protocol.h"

namespace rivulet::serve {

struct FromServer {
  nlohmann::json text;             // null for a picture
  std::optional<Picture> picture;  // a part of `bytes`
  std::shared_ptr<const std::string> bytes;
};

class LiveClient {
 public:
  // Connects and says nothing yet. Throws when the server does not take the connection.
  LiveClient(const std::string& address, int port, const std::string& origin = {});
  ~LiveClient();
  LiveClient(LiveClient&&) noexcept;

  void say(const nlohmann::json& message);
  void say_text(const std::string& text);
  void show(const PictureHeader& header, std::string_view jpeg);
  void send_binary(const std::string& bytes);
  // The next message; empty after `seconds` without one or when the connection is over.
  std::optional<FromServer> next(double seconds);
  // Skips pictures and other texts until one of this type comes; null when none did within the time.
  nlohmann::json wait_for(const std::string& type, double seconds);
  bool connected() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Plain HTTP: sends `request` as it is and returns all that comes back until the server closes or `seconds`
// are over.
std::string raw_http(const std::string& address, int port, const std::string& request, double seconds);

}  // namespace rivulet::serve
