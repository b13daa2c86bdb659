// An append-only log of what was asked and what the safeguards did: one JSON object a line,
//   {"n": 4, "time": "2025-01-31T12:00:00.123Z", "event": "refused", ..., "previous": HASH, "hash": HASH}
// where `hash` is the SHA-256 of the line without its hash, and `previous` the hash of the line before (64
// zeros for the first). Changing, removing or inserting a line breaks the chain from there on; cutting off
// the end does not, which is why `rivulet audit` prints the last hash to be kept elsewhere.
#pragma once

#include <mutex>
#include <string>

#include "nn/config.h"

namespace rivulet {

class AuditLog {
 public:
  // Continues the chain of an existing file. Throws when the file cannot be opened or its chain is broken.
  explicit AuditLog(const std::string& path);
  ~AuditLog();
  AuditLog(const AuditLog&) = delete;
  AuditLog& operator=(const AuditLog&) = delete;

  // Appends one entry and flushes it to the file; `facts` is an object. Any thread; several processes may
  // share a file. Throws when it cannot be written: what cannot be logged must not happen.
  void append(const std::string& event, const Json& facts);

 private:
  std::string path_;
  int file_ = -1;
  std::mutex mutex_;
};

struct AuditCheck {
  int64_t entries = 0;
  std::string last_hash;
  std::string error;  // empty when the chain is whole; otherwise the line and what is wrong with it
};
AuditCheck verify_audit(const std::string& path);

}  // namespace rivulet
