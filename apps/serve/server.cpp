#include "apps/serve/server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>

#include "apps/serve/connection.h"
#include "apps/serve/limits.h"
#include "apps/serve/pipeline.h"

namespace rivulet::serve {
namespace {

namespace asio = boost::asio;

constexpr auto kTick = std::chrono::milliseconds(250);

tcp::endpoint endpoint_of(const ServerOptions& options) {
  beast::error_code error;
  const auto address = asio::ip::make_address(options.address, error);
  check(!error, "serve: '", options.address, "' is not an IP address");
  return {address, static_cast<unsigned short>(options.port)};
}

}  // namespace

struct Server::Parts {
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  asio::steady_timer timer{io};
  ServerSide side;
  std::map<ClientId, std::weak_ptr<HttpConnection>> requests;
  std::map<ClientId, std::shared_ptr<LiveSocket>> sockets;
  ClientId last_id = 0;
  bool stopping = false;

  explicit Parts(Session& session) : side{session, 0, false, {}, {}, {}} {}
  void listen(const ServerOptions& options);
  void accept();
  void tick();
  void deliver(const Outs& outs);
  void stop();
};

void Server::Parts::listen(const ServerOptions& options) {
  const tcp::endpoint endpoint = endpoint_of(options);
  beast::error_code error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  check(!error, "serve: ", options.address, " port ", options.port, " cannot be had (", error.message(), ")");
  side.port = acceptor.local_endpoint().port();
  side.token = options.token;
  side.deliver = [this](const Outs& outs) { deliver(outs); };
  side.leave = [this](ClientId id) { requests.erase(id), sockets.erase(id); };
  side.enter = [this](ClientId id, std::shared_ptr<LiveSocket> live) {
    requests.erase(id);
    sockets[id] = std::move(live);
  };
  accept();
  tick();
}

void Server::Parts::accept() {
  acceptor.async_accept([this](beast::error_code error, tcp::socket socket) {
    if (stopping) return;
    if (!error) {
      const ClientId id = ++last_id;
      const auto open = int64_t(requests.size() + sockets.size());
      // So many more are told that the server is full; beyond that a connection just ends.
      if (open < 2 * kMaxConnections) {
        const auto connection = std::make_shared<HttpConnection>(side, std::move(socket), id);
        requests[id] = connection;
        connection->start(open >= kMaxConnections);
      }
    }
    accept();
  });
}

void Server::Parts::tick() {
  timer.expires_after(kTick);
  timer.async_wait([this](beast::error_code error) {
    if (error || stopping) return;
    deliver(side.session.tick(steady_seconds()));
    tick();
  });
}

void Server::Parts::deliver(const Outs& outs) {
  for (const Out& out : outs) {
    const auto it = sockets.find(out.to);
    if (it == sockets.end()) continue;
    const std::shared_ptr<LiveSocket> socket = it->second;  // sending may end it
    socket->send(out);
  }
}

void Server::Parts::stop() {
  stopping = true;
  acceptor.close();
  timer.cancel();
  const auto open = std::exchange(sockets, {});
  for (const auto& [id, socket] : open) socket->close();
  const auto asked = std::exchange(requests, {});
  for (const auto& [id, weak] : asked)
    if (const auto connection = weak.lock()) connection->close();
  io.stop();
}

Server::Server(const ServerOptions& options, Session& session) : parts_(std::make_unique<Parts>(session)) {
  parts_->listen(options);
}
Server::~Server() = default;

int Server::port() const { return parts_->side.port; }
void Server::run() { parts_->io.run(); }
void Server::stop() {
  asio::post(parts_->io, [this] { parts_->stop(); });
}
void Server::post(std::function<Outs()> work) {
  asio::post(parts_->io, [this, work = std::move(work)] {
    if (!parts_->stopping) parts_->deliver(work());
  });
}

}  // namespace rivulet::serve
