// Errors are exceptions that carry one sentence with the offending value. Only `main` catches.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace rivulet {

// What every function of the library throws. The text names the operation and the value it refused.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

// check(w.dims() == 1, "rms_norm: w has shape ", w.shape());
template <class... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(parts...);
}

}  // namespace rivulet
