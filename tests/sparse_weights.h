// Weight files of the true sizes of released models that take no room: every tensor is a hole in the file.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include "tensor/weight_file.h"
#include "tests/torch_writer.h"

namespace rivulet {

class SparseFile {
 public:
  explicit SparseFile(const std::string& path) : fd_(::open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0644)) {
    check(fd_ >= 0, path, ": cannot be made");
  }
  ~SparseFile() {
    check(::ftruncate(fd_, at_) == 0, "sparse file: cannot be grown");
    ::close(fd_);
  }
  SparseFile(const SparseFile&) = delete;
  SparseFile& operator=(const SparseFile&) = delete;
  void write(const std::string& bytes) {
    check(::pwrite(fd_, bytes.data(), bytes.size(), at_) == ssize_t(bytes.size()),
          "sparse file: cannot be written");
    at_ += int64_t(bytes.size());
  }
  void skip(int64_t bytes) { at_ += bytes; }
  int64_t at() const { return at_; }

 private:
  int fd_;
  int64_t at_ = 0;
};

// bf16 tensors, all zero.
inline void write_sparse_safetensors(const std::string& path, const NamedShapes& shapes) {
  std::string header = "{";
  int64_t at = 0;
  for (const auto& [name, shape] : shapes) {
    std::ostringstream entry;
    const int64_t bytes = 2 * shape.numel();
    entry << (at ? "," : "") << '"' << name << R"(":{"dtype":"BF16","shape":)" << shape
          << R"(,"data_offsets":[)" << at << ',' << at + bytes << "]}";
    header += entry.str();
    at += bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  SparseFile file(path);
  file.write(little(header.size(), 8) + header);
  file.skip(at);
}

// As torch.save writes more than 4 GiB: places beyond it stand in the zip64 fields. The tensors hold zeros,
// but for the first two elements of `marked`, which are bf16 1 and 2. `root` turns the dict of tensors into
// the file's.
template <class Root>
void write_sparse_torch(const std::string& path, const NamedShapes& shapes, const std::string& marked,
                        Root&& root) {
  std::vector<std::pair<std::string, std::string>> entries;
  int64_t key = 0;
  for (const auto& [name, shape] : shapes) {
    std::vector<int64_t> size(shape.begin(), shape.end()), stride;
    const Shape dense = contiguous_strides(shape);
    stride.assign(dense.begin(), dense.end());
    entries.emplace_back(
        name, pickled::tensor("BFloat16Storage", std::to_string(key++), shape.numel(), 0, size, stride));
  }
  SparseFile file(path);
  std::string table;
  int64_t count = 0;
  const auto member = [&](const std::string& name, const std::string& data, int64_t bytes) {
    const int64_t begin = file.at();
    const std::string common = little(45, 2) + little(0, 8) + little(0, 4) + little(uint64_t(bytes), 4) +
                               little(uint64_t(bytes), 4) + little(name.size(), 2);
    file.write("PK\3\4" + common + little(0, 2) + name + data);
    file.skip(bytes - int64_t(data.size()));
    const bool far = begin > 0xfffffffell;
    table += "PK\1\2" + little(45, 2) + common + little(far ? 12 : 0, 2) + little(0, 8) + little(0, 2) +
             little(far ? 0xffffffffull : uint64_t(begin), 4) + name;
    if (far) table += little(1, 2) + little(8, 2) + little(uint64_t(begin), 8);
    ++count;
  };
  const std::string pickle = pickled::file(root(pickled::dict(entries)));
  member("archive/data.pkl", pickle, int64_t(pickle.size()));
  key = 0;
  for (const auto& [name, shape] : shapes)
    member("archive/data/" + std::to_string(key++), name == marked ? little(0x40003f80, 4) : "",
           2 * shape.numel());
  const int64_t begin = file.at();
  file.write(table);
  const int64_t end = file.at();
  const std::string n = little(uint64_t(count), 8);
  file.write("PK\6\6" + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 8) + n + n +
             little(table.size(), 8) + little(uint64_t(begin), 8));
  file.write("PK\6\7" + little(0, 4) + little(uint64_t(end), 8) + little(1, 4));
  file.write("PK\5\6" + little(0, 4) + little(uint64_t(count), 2) + little(uint64_t(count), 2) +
             little(table.size(), 4) + little(0xffffffff, 4) + little(0, 2));
}

}  // namespace rivulet
