// Who may connect: tokens, and the Host and Origin that a browser names.
#pragma once

#include <string>
#include <string_view>

namespace rivulet::serve {

// 128 random bits from the system as 32 hex digits.
std::string new_token();

// In a time that depends on the length of what was offered alone.
bool same_secret(std::string_view offered, std::string_view secret);

// True of an address that only this machine can reach (127.0.0.0/8, ::1).
bool is_loopback(const std::string& address);

// `host` is the Host header of a request to a server on `port`. A page of another site that made its own name
// point here is recognised by that name: on a loopback server only localhost, 127.0.0.1 and [::1] pass. A
// server that asks for a token is reached by names that nobody knows beforehand, so any name passes there.
bool host_allowed(std::string_view host, int port, bool token);

// The origin of a WebSocket has to be the page that this server gave out.
bool origin_allowed(std::string_view origin, std::string_view host);

}  // namespace rivulet::serve
