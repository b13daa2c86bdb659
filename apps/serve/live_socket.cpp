#include "apps/serve/connection.h"
#include "apps/serve/limits.h"
#include "apps/serve/pipeline.h"

namespace rivulet::serve {
namespace {

// Pictures that wait for a client that does not keep up: four chunks of brook and their sources.
constexpr size_t kMaxPictures = 24;
constexpr size_t kMaxQueue = 256;
// Left to itself the system would keep megabytes of pictures that are late already.
constexpr int kSendBuffer = 256 << 10;

}  // namespace

LiveSocket::LiveSocket(ServerSide& server, tcp::socket socket, ClientId id)
    : server_(server), socket_(std::move(socket)), id_(id) {}

void LiveSocket::start(http::request<http::empty_body> request) {
  request_ = std::move(request);
  websocket::stream_base::timeout limits;
  limits.handshake_timeout = std::chrono::seconds(3);
  // Pings go out at half of this; a client that answers none is gone.
  limits.idle_timeout = std::chrono::milliseconds(int(1000 * kSilenceSeconds));
  limits.keep_alive_pings = true;
  socket_.set_option(limits);
  socket_.read_message_max(size_t(kMaxMessageBytes));
  beast::get_lowest_layer(socket_).expires_never();
  beast::error_code ignored;
  tcp::socket& plain = beast::get_lowest_layer(socket_).socket();
  plain.set_option(tcp::no_delay(true), ignored);
  plain.set_option(boost::asio::socket_base::send_buffer_size(kSendBuffer), ignored);
  socket_.async_accept(request_, [self = shared_from_this()](beast::error_code error) {
    if (error) return self->over();
    self->open_ = true;
    self->server_.session.connected(self->id_, steady_seconds());
    self->read();
  });
}

void LiveSocket::read() {
  socket_.async_read(buffer_, [self = shared_from_this()](beast::error_code error, size_t) {
    if (error) return self->over();
    const auto data = self->buffer_.data();
    const std::string_view bytes(static_cast<const char*>(data.data()), data.size());
    Session& session = self->server_.session;
    const double now = steady_seconds();
    if (self->socket_.got_text())
      self->server_.deliver(session.text(self->id_, bytes, now));
    else
      self->server_.deliver(session.picture(self->id_, std::make_shared<const std::string>(bytes), now));
    self->buffer_.consume(self->buffer_.size());
    if (!self->closing_) self->read();
  });
}

void LiveSocket::send(Out out) {
  if (!open_ || closing_ || over_) return;
  if (out.kind == Out::Kind::picture) {
    // The oldest one that is not being written makes room.
    if (pictures_ >= kMaxPictures) {
      const auto oldest = std::find_if(queue_.begin() + 1, queue_.end(),
                                       [](const Out& o) { return o.kind == Out::Kind::picture; });
      server_.session.unsent();
      if (oldest == queue_.end()) return;
      queue_.erase(oldest);
      --pictures_;
    }
    ++pictures_;
  }
  closing_ = out.kind == Out::Kind::close;
  queue_.push_back(std::move(out));
  if (queue_.size() > kMaxQueue) return close();
  if (queue_.size() == 1) write();
}

void LiveSocket::write() {
  const Out& out = queue_.front();
  if (out.kind == Out::Kind::close) {
    const websocket::close_reason reason(websocket::close_code::policy_error, out.message->substr(0, 120));
    return socket_.async_close(reason, [self = shared_from_this()](beast::error_code) { self->over(); });
  }
  socket_.binary(out.kind == Out::Kind::picture);
  socket_.async_write(boost::asio::buffer(*out.message),
                      [self = shared_from_this()](beast::error_code error, size_t) {
                        if (error) return self->over();
                        if (self->queue_.front().kind == Out::Kind::picture) --self->pictures_;
                        self->queue_.pop_front();
                        if (!self->queue_.empty()) self->write();
                      });
}

void LiveSocket::close() {
  beast::get_lowest_layer(socket_).close();
  over();
}

void LiveSocket::over() {
  if (std::exchange(over_, true)) return;
  beast::get_lowest_layer(socket_).close();
  if (open_) server_.deliver(server_.session.gone(id_));
  server_.leave(id_);
}

}  // namespace rivulet::serve
