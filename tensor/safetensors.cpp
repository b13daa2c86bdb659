#include "tensor/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>

#include "tensor/autograd.h"
#include "tensor/mapped_file.h"

namespace rivulet {
namespace {

using nlohmann::json;
constexpr uint64_t kMaxHeader = 100u << 20;

struct TypeName {
  const char* name;
  FileType type;
};
// A type's own name comes before those that are widened to it.
constexpr TypeName kNames[] = {
    {"F64", {DType::f64, 8}},      {"F32", {DType::f32, 4}},         {"BF16", {DType::bf16, 2}},
    {"F16", {DType::f16, 2}},      {"I64", {DType::i64, 8}},         {"I32", {DType::i32, 4}},
    {"U8", {DType::u8, 1}},        {"F8_E4M3", {DType::f8_e4m3, 1}}, {"F8_E5M2", {DType::f8_e5m2, 1}},
    {"F4", {DType::f4_e2m1x2, 1}}, {"BOOL", {DType::u8, 1}},         {"I8", {DType::i32, 1}},
    {"I16", {DType::i32, 2}},      {"U16", {DType::i32, 2, false}},  {"U32", {DType::i64, 4, false}}};

const char* file_name_of(DType t) {
  for (const auto& n : kNames)
    if (n.type.dtype == t) return n.name;
  fail("safetensors: cannot store ", t);
}

class FileHandle {
 public:
  FileHandle(const std::string& path, int flags, mode_t mode = 0644)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {
    if (fd_ < 0) fail(path, ": ", std::strerror(errno));
  }
  ~FileHandle() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileHandle(const FileHandle&) = delete;
  FileHandle& operator=(const FileHandle&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// JSON that refuses a name given twice: the second would silently replace the first.
json parse_header(const char* text, size_t n, const std::string& path) {
  std::set<std::string> seen;
  const auto callback = [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::key && depth == 1)
      check(seen.insert(value.get<std::string>()).second, path, ": tensor ", value.dump(),
            " is listed twice");
    check(depth < 16, path, ": header is nested too deeply");
    return true;
  };
  try {
    json header = json::parse(text, text + n, callback);
    check(header.is_object(), path, ": header is not a JSON object");
    return header;
  } catch (const json::exception& e) {
    fail(path, ": header is not valid JSON (", e.what(), ")");
  }
}

struct Entry {
  FileType type;
  Shape shape;
  int64_t begin, end;
};

Entry parse_entry(const json& value, const std::string& where, int64_t data_bytes) {
  Entry e{};
  try {
    const std::string name = value.at("dtype").get<std::string>();
    const TypeName* found = nullptr;
    for (const auto& n : kNames)
      if (name == n.name) found = &n;
    check(found != nullptr, where, ": unknown dtype ", name);
    e.type = found->type;
    const auto& dims = value.at("shape");
    check(dims.is_array() && dims.size() <= kMaxDims, where, ": bad shape ", dims.dump());
    int64_t limit =
        size_of(e.type.dtype);  // the byte count with empty dims counted as 1: strides need it too
    for (const auto& d : dims) {
      check(d.is_number_unsigned(), where, ": bad shape ", dims.dump());
      const int64_t n = d.get<int64_t>();
      check(n >= 0 && !__builtin_mul_overflow(limit, std::max<int64_t>(n, 1), &limit), where, ": shape ",
            dims.dump(), " overflows");
      e.shape.push_back(n);
    }
    int64_t bytes = e.shape.numel() * e.type.bytes;
    if (e.type.dtype == DType::f4_e2m1x2) {  // the file counts 4-bit elements, a tensor counts pairs
      check(e.shape.size() > 0 && e.shape[e.shape.size() - 1] % 2 == 0, where, ": odd row of 4-bit elements");
      e.shape[e.shape.size() - 1] /= 2;
      bytes /= 2;
    }
    const auto& offsets = value.at("data_offsets");
    check(offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() &&
              offsets[1].is_number_unsigned(),
          where, ": bad data_offsets ", offsets.dump());
    const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
    check(begin <= end && end <= uint64_t(data_bytes), where, ": data_offsets ", offsets.dump(),
          " lie outside the file's ", data_bytes, " data bytes");
    e.begin = int64_t(begin);
    e.end = int64_t(end);
    check(e.end - e.begin == bytes, where, ": shape ", e.shape, " of ", name, " needs ", bytes,
          " bytes, the file gives ", e.end - e.begin);
  } catch (const json::exception& error) {
    fail(where, ": ", error.what());
  }
  return e;
}

void check_layout(std::vector<std::pair<int64_t, int64_t>> spans, int64_t data_bytes,
                  const std::string& path) {
  std::sort(spans.begin(), spans.end());
  int64_t at = 0;
  for (const auto& [begin, end] : spans) {
    check(begin == at, path, ": data offsets ", begin > at ? "leave a gap" : "overlap", " at byte ",
          std::min(at, begin));
    at = end;
  }
  check(at == data_bytes, path, ": ", data_bytes - at, " bytes after the last tensor");
}

void write_all(int fd, const void* data, size_t n, const std::string& path) {
  const char* p = static_cast<const char*>(data);
  while (n > 0) {
    const ssize_t w = ::write(fd, p, n);
    if (w < 0 && errno == EINTR) continue;
    check(w > 0, path, ": write failed: ", std::strerror(errno));
    p += w;
    n -= size_t(w);
  }
}

// Calls fill(fd) on a new file beside `path`, syncs it and renames it over `path`.
template <class F>
void replace_file(const std::string& path, F&& fill) {
  const std::string beside = path + ".tmp" + std::to_string(::getpid());
  try {
    const FileHandle file(beside, O_WRONLY | O_CREAT | O_TRUNC);
    fill(file.get());
    check(::fsync(file.get()) == 0 || errno == EINVAL, path, ": sync failed: ", std::strerror(errno));
    check(::rename(beside.c_str(), path.c_str()) == 0, path, ": ", std::strerror(errno));
  } catch (...) {
    ::unlink(beside.c_str());
    throw;
  }
}

}  // namespace

SafeTensors::SafeTensors(const std::string& path) : path_(path) {
  const auto file = map_file(path);
  mapping_ = file;
  check(file->bytes() >= 8, path, ": ", file->bytes(), " bytes are too few for a safetensors file");
  const char* bytes = static_cast<const char*>(file->data());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes, 8);
  check(header_bytes <= kMaxHeader && header_bytes <= uint64_t(file->bytes() - 8), path, ": header length ",
        header_bytes, " does not fit a file of ", file->bytes(), " bytes");
  const json header = parse_header(bytes + 8, size_t(header_bytes), path);
  const int64_t data_begin = 8 + int64_t(header_bytes), data_bytes = file->bytes() - data_begin;
  std::vector<std::pair<int64_t, int64_t>> spans;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      check(value.is_object(), path, ": __metadata__ is not an object");
      for (const auto& [k, v] : value.items()) {
        check(v.is_string(), path, ": metadata ", k, " is not a string");
        metadata_[k] = v.get<std::string>();
      }
      continue;
    }
    const Entry e = parse_entry(value, path + ": tensor " + name, data_bytes);
    spans.emplace_back(e.begin, e.end);
    // Offsets need not be aligned for the dtype; such a tensor gets its own copy.
    tensors_[name] = file_tensor(file, data_begin + e.begin, e.shape, contiguous_strides(e.shape), e.type);
  }
  check_layout(std::move(spans), data_bytes, path);
}

Tensor SafeTensors::get(const std::string& name) const {
  const auto it = tensors_.find(name);
  check(it != tensors_.end(), path_, ": has no tensor named ", name);
  return it->second;
}

namespace {

// Entries of the header, one after another in the data.
class Header {
 public:
  Header(const std::string& path, const std::map<std::string, std::string>& metadata) : path_(path) {
    if (!metadata.empty()) json_["__metadata__"] = metadata;
  }
  void add(const std::string& name, DType dtype, Shape shape) {
    check(name != "__metadata__", "save_safetensors: ", path_, ": no tensor can be named __metadata__");
    check(!json_.contains(name), "save_safetensors: ", path_, ": two tensors are named ", name);
    const int64_t bytes = shape.numel() * size_of(dtype);
    if (dtype == DType::f4_e2m1x2) shape[shape.size() - 1] *= 2;
    json_[name] = {{"dtype", file_name_of(dtype)},
                   {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                   {"data_offsets", {at_, at_ + bytes}}};
    at_ += bytes;
  }
  // Length and text, as the file begins.
  std::string bytes() const {
    std::string text;
    try {
      text = json_.dump();
    } catch (const json::exception& e) {
      fail("save_safetensors: ", path_, ": a name or metadata value is not UTF-8 (", e.what(), ")");
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t n = text.size();
    return std::string(reinterpret_cast<const char*>(&n), 8) + text;
  }

 private:
  const std::string& path_;
  json json_ = json::object();
  int64_t at_ = 0;
};

}  // namespace

void save_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  Header header(path, metadata);
  for (const auto& [name, t] : tensors) {
    check(t.defined(), "save_safetensors: ", path, ": ", name, " is undefined");
    check(t.device() != Device::meta, "save_safetensors: ", path, ": ", name, " has no data");
    header.add(name, t.dtype(), t.shape());
  }
  const std::string begin = header.bytes();
  const NoGrad off;
  replace_file(path, [&](int fd) {
    write_all(fd, begin.data(), begin.size(), path);
    for (const auto& [name, t] : tensors)
      write_all(fd, t.detach().to(Device::cpu).contiguous().raw(), size_t(t.bytes()), path);
  });
}

void save_planned(const std::string& path, const std::vector<PlannedTensor>& tensors,
                  const std::map<std::string, std::string>& metadata) {
  constexpr int64_t kPiece = 16 << 20;
  Header header(path, metadata);
  for (const PlannedTensor& t : tensors) header.add(t.name, t.dtype, t.shape);
  const std::string begin = header.bytes();
  const NoGrad off;
  replace_file(path, [&](int fd) {
    write_all(fd, begin.data(), begin.size(), path);
    for (const PlannedTensor& t : tensors) {
      const int64_t n = t.shape.numel(), step = kPiece / size_of(t.dtype);
      for (int64_t at = 0; at < n; at += step) {
        const int64_t end = std::min(n, at + step);
        const Tensor part = t.part(at, end);
        check(part.numel() == end - at && part.dtype() == t.dtype, "save_planned: ", t.name, ": a part has ",
              part.numel(), " elements of ", part.dtype());
        write_all(fd, part.raw(), size_t(part.bytes()), path);
      }
    }
  });
}

void write_file(const std::string& path, const std::string& bytes) {
  replace_file(path, [&](int fd) { write_all(fd, bytes.data(), bytes.size(), path); });
}

std::string read_file(const std::string& path) {
  const FileHandle file(path, O_RDONLY);
  std::string out;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(file.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    check(n >= 0, path, ": ", std::strerror(errno));
    if (n == 0) return out;
    out.append(buffer, size_t(n));
  }
}

}  // namespace rivulet
