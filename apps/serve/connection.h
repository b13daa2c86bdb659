// One client: an HTTP request for a part of the page, or a WebSocket that stays. Private to the server.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/websocket.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "apps/serve/session.h"

namespace rivulet::serve {

namespace beast = boost::beast;
namespace http = boost::beast::http;
namespace websocket = boost::beast::websocket;
using boost::asio::ip::tcp;

// What a connection needs of the server around it.
struct ServerSide {
  Session& session;
  int port = 0;
  bool token = false;
  std::function<void(Outs)> deliver;
  std::function<void(ClientId)> leave;                                     // a connection is over
  std::function<void(ClientId, std::shared_ptr<class LiveSocket>)> enter;  // it became a WebSocket
};

// Reads one request after the other and answers from the assets, until the client asks for /live.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(ServerSide& server, tcp::socket socket, ClientId id);
  void start(bool full);  // full: whatever is asked for, the answer is that the server is full
  void close();

 private:
  using Response = http::response<http::span_body<const char>>;
  void read();
  void answer();
  void upgrade();
  void send(http::status status, std::string_view type, std::string_view body);
  void over();

  ServerSide& server_;
  beast::tcp_stream stream_;
  const ClientId id_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::empty_body>> parser_;
  std::optional<Response> response_;
  bool full_ = false, over_ = false;
};

class LiveSocket : public std::enable_shared_from_this<LiveSocket> {
 public:
  LiveSocket(ServerSide& server, tcp::socket socket, ClientId id);
  void start(http::request<http::empty_body> request);
  void send(Out out);
  void close();

 private:
  void read();
  void write();
  void over();

  ServerSide& server_;
  websocket::stream<beast::tcp_stream> socket_;
  const ClientId id_;
  http::request<http::empty_body> request_;
  beast::flat_buffer buffer_;
  std::deque<Out> queue_;  // the first one is being written
  size_t pictures_ = 0;    // of the queue
  bool open_ = false, closing_ = false, over_ = false;
};

}  // namespace rivulet::serve
