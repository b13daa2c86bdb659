// SHA-256 and what is made of it, from OpenSSL's libcrypto.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace rivulet {

using Digest = std::array<uint8_t, 32>;

Digest sha256(const std::string& bytes);
Digest hmac_sha256(const std::string& key, const std::string& bytes);
std::string hex(const Digest& digest);
// The first eight bytes as a big-endian number.
uint64_t leading_64(const Digest& digest);
std::string hex_64(uint64_t value);

// An endless stream of numbers that only the key foretells: HMAC-SHA256(key, purpose and a counter).
class KeyedStream {
 public:
  KeyedStream(std::string key, std::string purpose) : key_(std::move(key)), purpose_(std::move(purpose)) {}
  uint32_t next();
  // Evenly in 0 .. n - 1.
  uint32_t below(uint32_t n);

 private:
  std::string key_, purpose_;
  Digest block_ = {};
  uint64_t blocks_ = 0;
  size_t used_ = 32;
};

}  // namespace rivulet
