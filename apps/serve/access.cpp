#include "apps/serve/access.h"

#include <sys/random.h>

#include <array>
#include <boost/asio/ip/address.hpp>

#include "tensor/error.h"

namespace rivulet::serve {

std::string new_token() {
  std::array<unsigned char, 16> bytes{};
  check(::getrandom(bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()), "token: no random numbers");
  std::string text;
  for (unsigned char b : bytes) {
    text.push_back("0123456789abcdef"[b >> 4]);
    text.push_back("0123456789abcdef"[b & 15]);
  }
  return text;
}

bool same_secret(std::string_view offered, std::string_view secret) {
  check(!secret.empty(), "token: there is none to compare with");
  // Every byte offered is looked at, beside some byte of the secret; nothing branches on a difference.
  volatile unsigned char difference = offered.size() != secret.size();
  for (size_t i = 0; i < offered.size(); ++i)
    difference = difference | static_cast<unsigned char>(offered[i] ^ secret[i % secret.size()]);
  return difference == 0;
}

bool is_loopback(const std::string& address) {
  boost::system::error_code error;
  const auto ip = boost::asio::ip::make_address(address, error);
  check(!error, "serve: '", address, "' is not an IP address");
  return ip.is_loopback();
}

bool host_allowed(std::string_view host, int port, bool token) {
  if (token) return !host.empty();
  for (const char* name : {"localhost", "127.0.0.1", "[::1]"}) {
    const std::string plain = name;
    if (host == plain + ":" + std::to_string(port) || (port == 80 && host == plain)) return true;
  }
  return false;
}

bool origin_allowed(std::string_view origin, std::string_view host) {
  for (std::string_view scheme : {"http://", "https://"})
    if (origin.substr(0, scheme.size()) == scheme && origin.substr(scheme.size()) == host) return true;
  return false;
}

}  // namespace rivulet::serve
