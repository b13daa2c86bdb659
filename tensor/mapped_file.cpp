#include "tensor/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace rivulet {

std::shared_ptr<Storage> map_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, path, ": ", std::strerror(errno));
  struct stat info {};
  const bool known = ::fstat(fd, &info) == 0;
  const bool regular = known && S_ISREG(info.st_mode), empty = info.st_size == 0;
  void* p = MAP_FAILED;
  const size_t size = size_t(info.st_size);
  if (regular && !empty) p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  const int error = errno;
  ::close(fd);
  check(!(known && S_ISDIR(info.st_mode)), path, ": is a folder, not a regular file");
  check(regular, path, ": not a regular file");
  check(!empty, path, ": the file is empty, 0 bytes");
  check(p != MAP_FAILED, path, ": cannot be mapped: ", std::strerror(error));
  return Storage::borrow(p, int64_t(size), Device::cpu, [p, size] { ::munmap(p, size); });
}

void forget_pages(const void* begin, int64_t bytes) {
  const auto page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const auto first = (uintptr_t(begin) + page - 1) / page * page,
             last = (uintptr_t(begin) + uintptr_t(bytes)) / page * page;
  // A hint: where it fails, memory is used a little longer.
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

namespace {

int64_t widened(const char* p, const FileType& type) {
  uint64_t n = 0;
  std::memcpy(&n, p, size_t(type.bytes));
  const int unused = 64 - 8 * int(type.bytes);
  return type.is_signed ? int64_t(n << unused) >> unused : int64_t(n);
}

void copy_element(char* to, const char* from, const FileType& type) {
  const int64_t size = size_of(type.dtype);
  if (type.bytes == size) {
    std::memcpy(to, from, size_t(size));
    return;
  }
  const int64_t n = widened(from, type);
  std::memcpy(to, &n, size_t(size));  // the low bytes
}

}  // namespace

Tensor file_tensor(const std::shared_ptr<Storage>& file, int64_t at, const Shape& shape, const Shape& strides,
                   const FileType& type) {
  const int64_t size = size_of(type.dtype);
  if (type.bytes == size && at % size == 0) return Tensor(file, at / size, shape, strides, type.dtype);
  Tensor copy(shape, type.dtype);
  const char* from = static_cast<const char*>(file->data()) + at;
  auto* to = static_cast<char*>(copy.raw());
  if (type.bytes == size && strides == contiguous_strides(shape)) {
    std::memcpy(to, from, size_t(copy.bytes()));
    return copy;
  }
  for (int64_t i = 0; i < copy.numel(); ++i) {
    int64_t rest = i, offset = 0;
    for (int d = shape.size() - 1; d >= 0; --d) {
      offset += rest % shape[d] * strides[d];
      rest /= shape[d];
    }
    copy_element(to + i * size, from + offset * type.bytes, type);
  }
  return copy;
}

}  // namespace rivulet
