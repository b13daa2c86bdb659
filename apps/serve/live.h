// Everything of a live server put together: `rivulet serve` is this and its command line.
#pragma once

#include <memory>
#include <string>

#include "apps/safeguards/guard.h"
#include "apps/serve/server.h"
#include "apps/serve/studio.h"

namespace rivulet::serve {

struct LiveOptions {
  ServerOptions server;
  FrameSize size{256, 144};
  std::string token;   // empty: none is asked for
  std::string ledger;  // a file that gets one JSON line per chunk; empty for none
  int threads = 0;
};

class Live {
 public:
  // `editor` and `safeguards` outlive it. Listens from here on.
  Live(const LiveOptions& options, const Editor& editor, const Safeguards& safeguards);
  int port() const { return server_.port(); }
  void run() { server_.run(); }
  void stop() { server_.stop(); }

 private:
  Ledger ledger_;
  Session session_;
  Server server_;
  Studio studio_;  // last, so that its threads end before what they post to
};

}  // namespace rivulet::serve
