// The sockets of `rivulet serve`: the page over HTTP, the session over WebSockets at /live. One thread runs
// everything in here; what other threads have to say comes in through post().
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "apps/serve/session.h"

namespace rivulet::serve {

struct ServerOptions {
  std::string address = "127.0.0.1";
  int port = 0;        // 0 for one that is free
  bool token = false;  // one is asked for: other names for this machine are fine
};

class Server {
 public:
  // Listens from here on. Throws when the address cannot be had. The session outlives the server.
  Server(const ServerOptions& options, Session& session);
  ~Server();
  int port() const;

  // Until stop(). Returns after every connection is closed.
  void run();
  void stop();  // from any thread

  // Runs `work` on the server's thread and sends what it returns. From any thread.
  void post(std::function<Outs()> work);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace rivulet::serve
