#include "apps/safeguards/audit.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <optional>

#include "apps/safeguards/digest.h"
#include "tensor/error.h"

namespace rivulet {
namespace {

const std::string kNoHash(64, '0');
constexpr int64_t kLongestLine = 1 << 20;

std::string now() {
  const auto time = std::chrono::system_clock::now();
  const auto whole = std::chrono::floor<std::chrono::seconds>(time);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(time - whole).count();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(whole);
  std::tm utc = {};
  ::gmtime_r(&seconds, &utc);
  char text[40], full[48];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
  std::snprintf(full, sizeof full, "%s.%03dZ", text, int(ms));
  return full;
}

// nlohmann's objects are sorted by key, so one entry has one text.
std::string hash_of(Json entry) {
  entry.erase("hash");
  return hex(sha256(entry.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

// What is wrong with a line that has to follow an entry of this number and hash; empty for nothing.
std::string fault(const Json& entry, int64_t number, const std::string& previous) {
  const auto text = [&](const char* name) {
    return entry.contains(name) && entry[name].is_string() ? entry[name].get<std::string>() : std::string();
  };
  if (!entry.is_object() || !entry.contains("n") || !entry["n"].is_number_integer()) return "is not an entry";
  if (entry["n"] != number) return "has number " + entry["n"].dump() + ", not " + std::to_string(number);
  if (text("previous") != previous) return "does not follow the entry before it";
  if (text("hash") != hash_of(entry)) return "was changed: its hash does not fit";
  return {};
}

struct LockedFile {
  int file;
  explicit LockedFile(int f, const std::string& path) : file(f) {
    while (::flock(file, LOCK_EX) < 0)
      check(errno == EINTR, path, ": cannot be locked: ", std::strerror(errno));
  }
  ~LockedFile() { ::flock(file, LOCK_UN); }
};

// The last line of a file, without its end; nothing for an empty file.
std::optional<std::string> last_line(int file, const std::string& path) {
  const off_t size = ::lseek(file, 0, SEEK_END);
  check(size >= 0, path, ": cannot be read: ", std::strerror(errno));
  if (size == 0) return std::nullopt;
  std::string tail(size_t(std::min<int64_t>(size, kLongestLine)), '\0');
  const ssize_t n = ::pread(file, tail.data(), tail.size(), size - off_t(tail.size()));
  check(n == ssize_t(tail.size()), path, ": cannot be read");
  check(tail.back() == '\n', path, ": its last line is cut off");
  tail.pop_back();
  const size_t begin = tail.rfind('\n');
  return begin == std::string::npos ? tail : tail.substr(begin + 1);
}

}  // namespace

AuditLog::AuditLog(const std::string& path) : path_(path) {
  file_ = ::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  check(file_ >= 0, path, ": cannot be opened: ", std::strerror(errno));
  AuditCheck found = verify_audit(path);
  if (!found.error.empty()) ::close(file_);
  check(found.error.empty(), path, ": ", found.error);
}

AuditLog::~AuditLog() { ::close(file_); }

void AuditLog::append(const std::string& event, const Json& facts) {
  check(facts.is_object(), "audit: the facts of ", event, " are not an object");
  const std::lock_guard guard(mutex_);
  const LockedFile lock(file_, path_);
  int64_t number = 1;
  std::string previous = kNoHash;
  // Another process may have written since.
  if (const auto line = last_line(file_, path_)) {
    const Json last = Json::parse(*line, nullptr, false);
    check(last.is_object() && last.contains("n") && last["n"].is_number_integer() && last.contains("hash") &&
              last["hash"] == hash_of(last),
          path_, ": its last line is not a whole entry");
    number = last["n"].get<int64_t>() + 1;
    previous = last["hash"].get<std::string>();
  }
  Json entry = facts;
  entry["n"] = number;
  entry["time"] = now();
  entry["event"] = event;
  entry["previous"] = previous;
  entry["hash"] = hash_of(entry);
  const std::string line = entry.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  const ssize_t n = ::write(file_, line.data(), line.size());
  check(n == ssize_t(line.size()) && ::fdatasync(file_) == 0, path_,
        ": cannot be written: ", std::strerror(errno));
}

AuditCheck verify_audit(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  check(in.good(), path, ": cannot be read");
  AuditCheck result{0, kNoHash, ""};
  for (std::string line; std::getline(in, line);) {
    const int64_t number = result.entries + 1;
    std::string wrong =
        in.eof() ? "is cut off" : fault(Json::parse(line, nullptr, false), number, result.last_hash);
    if (!wrong.empty()) {
      result.error = "line " + std::to_string(number) + " " + wrong;
      return result;
    }
    result.entries = number;
    result.last_hash = Json::parse(line)["hash"].get<std::string>();
  }
  return result;
}

}  // namespace rivulet
