// PyTorch weight files written by the tests themselves, so that they can be right or wrong in any way: the
// pickle's operations one by one, and a zip whose every field can be set.
#pragma once

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

inline std::string little(uint64_t n, int bytes) {
  return std::string(reinterpret_cast<const char*>(&n), size_t(bytes));
}

// Pickle operations as torch.save writes them in protocol 2.
namespace pickled {
inline std::string text(const std::string& s) { return "X" + little(s.size(), 4) + s; }
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string integer(int64_t n) {
  if (n >= 0 && n < 256) return "K" + little(uint64_t(n), 1);
  return "\x8a\x08" + little(uint64_t(n), 8);
}
inline std::string tuple(const std::vector<std::string>& items) {
  std::string out = "(";
  for (const std::string& i : items) out += i;
  return out + "t";
}
inline std::string integers(const std::vector<int64_t>& list) {
  std::vector<std::string> items;
  for (int64_t n : list) items.push_back(integer(n));
  return tuple(items);
}
inline std::string call(const std::string& function, const std::vector<std::string>& arguments) {
  return function + tuple(arguments) + "R";
}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& pairs) {
  std::string out = "}(";
  for (const auto& [key, value] : pairs) out += text(key) + value;
  return out + "u";
}
inline std::string storage(const std::string& type, const std::string& key, int64_t elements) {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"), integer(elements)}) + "Q";
}
inline std::string ordered() { return global("collections", "OrderedDict") + ")R"; }
inline std::string tensor(const std::string& type, const std::string& key, int64_t elements, int64_t offset,
                          const std::vector<int64_t>& size, const std::vector<int64_t>& stride) {
  return call(
      global("torch._utils", "_rebuild_tensor_v2"),
      {storage(type, key, elements), integer(offset), integers(size), integers(stride), "\x89", ordered()});
}
inline std::string file(const std::string& root, int protocol = 2) {
  return "\x80" + little(uint64_t(protocol), 1) + root + ".";
}
}  // namespace pickled

// A zip of stored members, aligned as torch.save aligns them; members may be spoiled before write().
struct ZipWriter {
  struct Member {
    std::string name, data;
    int method = 0;                 // 8: said to be deflated
    int64_t begin = -1;             // of the local header in the file; set to share another's place
    uint64_t claimed_size = ~0ull;  // of the unpacked data
  };
  std::vector<Member> members;

  Member& add(const std::string& name, const std::string& data) {
    members.push_back({name, data});
    return members.back();
  }
  std::string bytes() const {
    std::string out, table;
    for (const Member& m : members) {
      const std::string& packed = m.data;
      const uint64_t size = m.claimed_size == ~0ull ? m.data.size() : m.claimed_size;
      const std::string common = little(20, 2) + little(0, 2) + little(uint64_t(m.method), 2) + little(0, 4) +
                                 little(0, 4) + little(packed.size(), 4) + little(size, 4) +
                                 little(m.name.size(), 2);
      uint64_t at = out.size();
      if (m.begin >= 0) {
        at = uint64_t(m.begin);
      } else {
        const uint64_t header = out.size() + 30 + m.name.size() + 4, padding = (64 - header % 64) % 64;
        out += "PK\3\4" + common + little(4 + padding, 2) + m.name + "FB" + little(padding, 2) +
               std::string(padding, 'Z') + packed;
      }
      table += "PK\1\2" + little(20, 2) + common + little(0, 2) + little(0, 8) + little(0, 2) +
               little(at, 4) + m.name;
    }
    const uint64_t n = members.size();
    return out + table + "PK\5\6" + little(0, 4) + little(n, 2) + little(n, 2) + little(table.size(), 4) +
           little(out.size(), 4) + little(0, 2);
  }
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}
inline std::string raw_bytes(const Tensor& t) {
  return {static_cast<const char*>(t.raw()), size_t(t.bytes())};
}
template <class T>
std::string raw_bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// A file of this pickle and these storages.
inline ZipWriter torch_zip(const std::string& root, const std::vector<std::string>& storages,
                           int protocol = 2) {
  ZipWriter zip;
  zip.add("archive/data.pkl", pickled::file(root, protocol));
  zip.add("archive/byteorder", "little");
  for (size_t i = 0; i < storages.size(); ++i) zip.add("archive/data/" + std::to_string(i), storages[i]);
  zip.add("archive/version", "3\n");
  return zip;
}

}  // namespace rivulet
