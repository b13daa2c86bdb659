#include "apps/safeguards/digest.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "tensor/error.h"

namespace rivulet {

Digest sha256(const std::string& bytes) {
  Digest d;
  unsigned size = 0;
  const int ok = EVP_Digest(bytes.data(), bytes.size(), d.data(), &size, EVP_sha256(), nullptr);
  check(ok == 1 && size == d.size(), "sha256: libcrypto failed");
  return d;
}

Digest hmac_sha256(const std::string& key, const std::string& bytes) {
  Digest d;
  unsigned size = 0;
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const bool ok =
      HMAC(EVP_sha256(), key.data(), int(key.size()), data, bytes.size(), d.data(), &size) != nullptr;
  check(ok && size == d.size(), "hmac: libcrypto failed");
  return d;
}

std::string hex(const Digest& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (uint8_t b : digest) (text += kDigits[b >> 4]) += kDigits[b & 15];
  return text;
}

uint64_t leading_64(const Digest& digest) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value = value << 8 | digest[i];
  return value;
}

std::string hex_64(uint64_t value) {
  Digest d = {};
  for (size_t i = 0; i < 8; ++i) d[i] = uint8_t(value >> (56 - 8 * i));
  return hex(d).substr(0, 16);
}

uint32_t KeyedStream::next() {
  if (used_ == block_.size()) {
    block_ = hmac_sha256(key_, purpose_ + " " + std::to_string(blocks_++));
    used_ = 0;
  }
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | block_[used_++];
  return value;
}

uint32_t KeyedStream::below(uint32_t n) {
  check(n > 0, "keyed stream: asked for a number below 0");
  // The last, incomplete run of remainders is thrown back.
  const uint32_t limit = UINT32_MAX - UINT32_MAX % n;
  uint32_t value = next();
  while (value >= limit) value = next();
  return value % n;
}

}  // namespace rivulet
