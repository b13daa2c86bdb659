#include "apps/serve/client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/websocket.hpp>
#include <chrono>
#include <functional>

#include "tensor/error.h"

namespace rivulet::serve {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = boost::beast::websocket;
using tcp = asio::ip::tcp;

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(int64_t(1000 * seconds));
}

}  // namespace

struct LiveClient::Parts {
  asio::io_context io{1};
  websocket::stream<tcp::socket> socket{io};
  beast::flat_buffer buffer;
  bool reading = false, open = false;
  std::optional<FromServer> got;

  void read();
};

// A read goes on across calls of next(): one that was given up half-way would break the stream.
void LiveClient::Parts::read() {
  reading = true;
  socket.async_read(buffer, [this](beast::error_code error, size_t) {
    reading = false;
    if (error) {
      open = false;
      return;
    }
    FromServer message;
    const auto data = buffer.data();
    message.bytes = std::make_shared<const std::string>(static_cast<const char*>(data.data()), data.size());
    buffer.consume(buffer.size());
    if (socket.got_text())
      message.text = nlohmann::json::parse(*message.bytes);
    else
      message.picture = parse_picture(*message.bytes);
    got = std::move(message);
  });
}

LiveClient::LiveClient(const std::string& address, int port, const std::string& origin)
    : parts_(std::make_unique<Parts>()) {
  beast::error_code error;
  tcp::socket& tcp_socket = parts_->socket.next_layer();
  tcp_socket.connect({asio::ip::make_address(address), static_cast<unsigned short>(port)}, error);
  check(!error, "client: ", address, " port ", port, " does not answer (", error.message(), ")");
  tcp_socket.set_option(tcp::no_delay(true));
  const std::string host = address + ":" + std::to_string(port);
  parts_->socket.set_option(websocket::stream_base::decorator([&](websocket::request_type& request) {
    request.set(boost::beast::http::field::origin, origin.empty() ? "http://" + host : origin);
  }));
  parts_->socket.read_message_max(8 << 20);
  parts_->socket.handshake(host, "/live", error);
  check(!error, "client: the server did not take the connection (", error.message(), ")");
  parts_->open = true;
}
LiveClient::~LiveClient() = default;
LiveClient::LiveClient(LiveClient&&) noexcept = default;

void LiveClient::say(const nlohmann::json& message) { say_text(message.dump()); }

void LiveClient::say_text(const std::string& text) {
  beast::error_code error;
  parts_->socket.text(true);
  parts_->socket.write(asio::buffer(text), error);
  parts_->open = parts_->open && !error;
}

void LiveClient::send_binary(const std::string& bytes) {
  beast::error_code error;
  parts_->socket.binary(true);
  parts_->socket.write(asio::buffer(bytes), error);
  parts_->open = parts_->open && !error;
}

void LiveClient::show(const PictureHeader& header, std::string_view jpeg) {
  send_binary(picture_message(header, jpeg));
}

std::optional<FromServer> LiveClient::next(double seconds) {
  const auto until = std::chrono::steady_clock::now() + milliseconds(seconds);
  while (!parts_->got && parts_->open) {
    if (!parts_->reading) parts_->read();
    parts_->io.restart();
    if (parts_->io.run_one_until(until) == 0 && !parts_->got) return std::nullopt;
  }
  return std::exchange(parts_->got, std::nullopt);
}

nlohmann::json LiveClient::wait_for(const std::string& type, double seconds) {
  const auto until = std::chrono::steady_clock::now() + milliseconds(seconds);
  while (true) {
    const double left = std::chrono::duration<double>(until - std::chrono::steady_clock::now()).count();
    const auto message = left > 0 ? next(left) : std::nullopt;
    if (!message) return nullptr;
    if (message->text.is_object() && message->text.value("type", "") == type) return message->text;
  }
}

bool LiveClient::connected() const { return parts_->open; }

std::string raw_http(const std::string& address, int port, const std::string& request, double seconds) {
  asio::io_context io;
  beast::tcp_stream stream(io);
  beast::error_code error;
  stream.connect(tcp::endpoint(asio::ip::make_address(address), static_cast<unsigned short>(port)), error);
  check(!error, "client: ", address, " port ", port, " does not answer (", error.message(), ")");
  asio::write(stream.socket(), asio::buffer(request), error);
  std::string all;
  std::array<char, 65536> piece{};
  stream.expires_after(milliseconds(seconds));
  std::function<void()> read = [&] {
    stream.async_read_some(asio::buffer(piece), [&](beast::error_code e, size_t n) {
      all.append(piece.data(), n);
      if (!e) read();
    });
  };
  read();
  io.run();
  return all;
}

}  // namespace rivulet::serve
