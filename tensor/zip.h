// The table of contents of a zip file, 64-bit ones included. Nothing is unpacked. (Debian's minizip misreads
// places beyond 4 GiB, and libzip does not tell where a member lies.)
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace rivulet {

struct ZipMember {
  int64_t begin = 0, bytes = 0;  // of its data, as it stands in the file
  bool stored = false;           // not compressed
};

// Members by name. Throws an Error that opens with `source` when the table is damaged or cut short, when two
// members have one name or overlap, when one lies outside of the file or is encrypted, and when a member's
// own header does not agree with the table.
std::map<std::string, ZipMember> list_zip(std::string_view file, const std::string& source);

}  // namespace rivulet
