#include "apps/serve/access.h"
#include "apps/serve/assets.h"
#include "apps/serve/connection.h"
#include "apps/serve/limits.h"

namespace rivulet::serve {
namespace {

constexpr uint32_t kMaxHeaderBytes = 8192;

// The page runs nothing that is not part of it and talks to nobody but this server.
constexpr const char* kContentPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'";

std::string_view view(beast::string_view s) { return {s.data(), s.size()}; }

const Asset* find_asset(std::string_view path) {
  if (path == "/") path = "/index.html";
  for (const Asset& asset : page_assets())
    if (asset.path == path) return &asset;
  return nullptr;
}

}  // namespace

HttpConnection::HttpConnection(ServerSide& server, tcp::socket socket, ClientId id)
    : server_(server), stream_(std::move(socket)), id_(id) {}

void HttpConnection::start(bool full) {
  full_ = full;
  read();
}

void HttpConnection::close() { stream_.close(); }

void HttpConnection::read() {
  parser_.emplace();
  parser_->header_limit(kMaxHeaderBytes);
  parser_->body_limit(uint64_t(0));
  // For the whole request, however slowly it comes.
  stream_.expires_after(std::chrono::milliseconds(int(1000 * kRequestSeconds)));
  http::async_read(stream_, buffer_, *parser_, [self = shared_from_this()](beast::error_code error, size_t) {
    if (error) return self->over();
    self->answer();
  });
}

void HttpConnection::answer() {
  if (full_) return send(http::status::service_unavailable, "text/plain", "This server is full.\n");
  const auto& request = parser_->get();
  const std::string_view host = view(request[http::field::host]);
  std::string_view path = view(request.target());
  path = path.substr(0, path.find('?'));
  if (!host_allowed(host, server_.port, server_.token))
    return send(http::status::forbidden, "text/plain", "This server does not answer to that name.\n");
  if (path == "/live") {
    if (!websocket::is_upgrade(request))
      return send(http::status::upgrade_required, "text/plain", "A WebSocket is spoken here.\n");
    if (!origin_allowed(view(request[http::field::origin]), host))
      return send(http::status::forbidden, "text/plain", "Only this server's own page may connect.\n");
    return upgrade();
  }
  if (request.method() != http::verb::get && request.method() != http::verb::head)
    return send(http::status::method_not_allowed, "text/plain", "Pages are only read here.\n");
  const Asset* asset = find_asset(path);
  if (asset == nullptr) return send(http::status::not_found, "text/plain", "There is no such page.\n");
  send(http::status::ok, asset->type, asset->body);
}

void HttpConnection::upgrade() {
  stream_.expires_never();
  over_ = true;  // the socket goes on under the same id
  auto live = std::make_shared<LiveSocket>(server_, stream_.release_socket(), id_);
  server_.enter(id_, live);
  live->start(parser_->release());
}

void HttpConnection::send(http::status status, std::string_view type, std::string_view body) {
  const bool head = parser_->get().method() == http::verb::head;
  response_.emplace(status, 11);
  response_->set(http::field::content_type, beast::string_view(type.data(), type.size()));
  response_->set(http::field::cache_control, "no-cache");
  response_->set("Content-Security-Policy", kContentPolicy);
  response_->set("Cross-Origin-Opener-Policy", "same-origin");
  response_->set("Cross-Origin-Resource-Policy", "same-origin");
  response_->set("Permissions-Policy",
                 "camera=(self), display-capture=(self), microphone=(), geolocation=()");
  response_->set("Referrer-Policy", "no-referrer");
  response_->set("X-Content-Type-Options", "nosniff");
  const bool keep = status == http::status::ok && parser_->get().keep_alive();
  response_->keep_alive(keep);
  response_->content_length(body.size());
  if (!head) response_->body() = {body.data(), body.size()};
  stream_.expires_after(std::chrono::seconds(30));
  auto done = [self = shared_from_this(), keep](beast::error_code error, size_t) {
    if (!error && keep) return self->read();
    self->over();
  };
  http::async_write(stream_, *response_, std::move(done));
}

void HttpConnection::over() {
  if (std::exchange(over_, true)) return;
  beast::error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  stream_.close();
  server_.leave(id_);
}

}  // namespace rivulet::serve
