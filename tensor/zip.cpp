#include "tensor/zip.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tensor/error.h"

namespace rivulet {
namespace {

constexpr uint64_t kEnd = 22, kEnd64 = 56, kLocator64 = 20, kEntry = 46, kLocal = 30, kLongestComment = 65535;
constexpr uint64_t kMostMembers = 1 << 20;
constexpr uint32_t kElsewhere = 0xffffffff;  // the true value stands in a 64-bit field

class ZipTable {
 public:
  ZipTable(std::string_view file, const std::string& source) : file_(file), source_(source) {}

  std::map<std::string, ZipMember> read() {
    find_table();
    std::map<std::string, ZipMember> members;
    uint64_t at = table_;
    for (uint64_t i = 0; i < count_; ++i) {
      const auto [name, member] = read_entry(at);
      check(members.emplace(name, member).second, source_, ": member ", name, " is listed twice");
    }
    check(at == table_end_, source_, kDamaged);
    return members;
  }

 private:
  static constexpr const char* kDamaged = ": the zip's table of contents is damaged";

  // A little-endian number at a place in the file.
  uint64_t number(uint64_t at, int bytes) const {
    check(at <= file_.size() && uint64_t(bytes) <= file_.size() - at, source_, kDamaged);
    uint64_t n = 0;
    std::memcpy(&n, file_.data() + at, size_t(bytes));
    return n;
  }
  bool signed_as(uint64_t at, const char* mark) const {
    return at <= file_.size() && file_.substr(at, 4) == std::string_view(mark, 4);
  }

  // The table ends where the record about it begins, at the end of the file but for a comment.
  void find_table() {
    const uint64_t size = file_.size();
    uint64_t end = size;
    for (uint64_t comment = 0; comment <= kLongestComment && comment + kEnd <= size; ++comment)
      if (const uint64_t at = size - kEnd - comment;
          signed_as(at, "PK\5\6") && number(at + 20, 2) == comment) {
        end = at;
        break;
      }
    check(end < size, source_, ": the zip is damaged or cut short: it has no table of contents");
    uint64_t table_bytes = number(end + 12, 4), disks = number(end + 4, 2) | number(end + 6, 2);
    count_ = number(end + 10, 2);
    table_ = number(end + 16, 4);
    table_end_ = end;
    if (end >= kLocator64 && signed_as(end - kLocator64, "PK\6\7")) {
      const uint64_t at = number(end - kLocator64 + 8, 8);
      check(at <= size - kEnd64 && signed_as(at, "PK\6\6"), source_, kDamaged);
      disks = number(at + 16, 4) | number(at + 20, 4);
      count_ = number(at + 32, 8);
      table_bytes = number(at + 40, 8);
      table_ = number(at + 48, 8);
      table_end_ = at;
    }
    check(disks == 0, source_, ": the zip is in several parts");
    check(table_ <= table_end_ && table_bytes == table_end_ - table_, source_, kDamaged);
    check(count_ <= kMostMembers, source_, ": the zip claims ", count_, " members");
  }

  // Sizes and place that do not fit 32 bits stand in a field of kind 1, those alone and in this order.
  void read_wide(uint64_t at, uint64_t bytes, uint64_t& unpacked, uint64_t& packed, uint64_t& local) const {
    const uint64_t end = at + bytes;
    while (end - at >= 4) {
      const uint64_t kind = number(at, 2), length = number(at + 2, 2);
      at += 4;
      check(length <= end - at, source_, kDamaged);
      uint64_t next = at;
      if (kind == 1)
        for (uint64_t* value : {&unpacked, &packed, &local})
          if (*value == kElsewhere) {
            check(next + 8 <= at + length, source_, kDamaged);
            *value = number(next, 8);
            next += 8;
          }
      at += length;
    }
  }

  std::pair<std::string, ZipMember> read_entry(uint64_t& at) const {
    check(table_end_ - at >= kEntry && signed_as(at, "PK\1\2"), source_, kDamaged);
    const uint64_t flags = number(at + 8, 2), method = number(at + 10, 2), name_bytes = number(at + 28, 2),
                   extra = number(at + 30, 2), comment = number(at + 32, 2);
    uint64_t packed = number(at + 20, 4), unpacked = number(at + 24, 4), local = number(at + 42, 4);
    check(name_bytes + extra + comment <= table_end_ - at - kEntry, source_, kDamaged);
    const std::string name(file_.substr(at + kEntry, name_bytes)), where = source_ + ": member " + name;
    read_wide(at + kEntry + name_bytes, extra, unpacked, packed, local);
    at += kEntry + name_bytes + extra + comment;
    check((flags & 1) == 0, where, " is encrypted");
    check(local <= table_ && table_ - local >= kLocal, where, " lies outside of the file");
    check(signed_as(local, "PK\3\4") && number(local + 8, 2) == method &&
              number(local + 26, 2) == name_bytes && file_.substr(local + kLocal, name_bytes) == name,
          where, ": its own header does not agree with the table of contents");
    const uint64_t begin = local + kLocal + name_bytes + number(local + 28, 2);
    check(begin <= table_ && packed <= table_ - begin, where, " lies outside of the file");
    return {name, {int64_t(begin), int64_t(packed), method == 0 && packed == unpacked}};
  }

  std::string_view file_;
  const std::string& source_;
  uint64_t table_ = 0, table_end_ = 0, count_ = 0;
};

void check_no_overlap(const std::map<std::string, ZipMember>& members, const std::string& source) {
  std::vector<std::pair<ZipMember, std::string>> order;
  for (const auto& [name, m] : members)
    if (m.bytes > 0) order.emplace_back(m, name);
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  for (size_t i = 1; i < order.size(); ++i)
    check(order[i - 1].first.begin + order[i - 1].first.bytes <= order[i].first.begin, source, ": members ",
          order[i - 1].second, " and ", order[i].second, " overlap");
}

}  // namespace

std::map<std::string, ZipMember> list_zip(std::string_view file, const std::string& source) {
  const auto members = ZipTable(file, source).read();
  check_no_overlap(members, source);
  return members;
}

}  // namespace rivulet
