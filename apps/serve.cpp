// rivulet serve: the live page on this machine.
#include <chrono>
#include <filesystem>
#include <iostream>
#include <thread>

#include "apps/bundled.h"
#include "apps/commands.h"
#include "apps/interrupt.h"
#include "apps/serve/access.h"
#include "apps/serve/live.h"

namespace rivulet {
namespace {

std::string model_folder(const std::string& model) {
  if (model.empty()) return bundled_model();
  return std::filesystem::is_directory(model) ? model : bundled_model(model);
}

// What a person opens. The token follows a #, which browsers keep to themselves.
std::string page_address(const std::string& address, int port, const std::string& token) {
  const bool six = address.find(':') != address.npos;
  return "http://" + (six ? "[" + address + "]" : address) + ":" + std::to_string(port) + "/" +
         (token.empty() ? "" : "#token=" + token);
}

}  // namespace

int run_serve(const ServeOptions& o) {
  serve::LiveOptions live;
  live.server = {o.bind, o.port, !serve::is_loopback(o.bind)};
  live.size = parse_size(o.size);
  live.ledger = o.ledger;
  live.threads = o.threads;
  if (live.server.token) live.token = serve::new_token();
  const Editor editor = Editor::load(model_folder(o.model), device_named(o.device));
  const Safeguards safeguards(load_safeguards(o.safeguards));
  serve::Live server(live, editor, safeguards);
  std::cout << page_address(o.bind, server.port(), live.token) << std::endl;

  const Interrupt interrupt;
  std::atomic<bool> over{false};
  std::thread watcher([&] {
    while (!interrupt.flag() && !over) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    server.stop();
  });
  server.run();
  over = true;
  watcher.join();
  return 0;
}

}  // namespace rivulet
