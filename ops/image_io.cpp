#include "ops/image_io.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <limits>
#include <memory>

#include "tensor/safetensors.h"

#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>
#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb_image_write.h>

namespace rivulet {
namespace {

std::string lower_extension(const std::string& path) {
  std::string ext = std::filesystem::path(path).extension().string();
  std::transform(ext.begin(), ext.end(), ext.begin(), [](unsigned char c) { return std::tolower(c); });
  return ext;
}

void append(void* to, void* bytes, int n) {
  static_cast<std::string*>(to)->append(static_cast<char*>(bytes), n);
}

Tensor checked(const Tensor& image, const char* who) {
  check(image.dtype() == DType::u8 && image.dims() == 3 && image.dim(2) == 3 && image.numel() > 0, who,
        ": needs u8 [H, W, 3], got ", image.dtype(), " ", image.shape());
  check(image.dim(0) <= kMaxImageSide && image.dim(1) <= kMaxImageSide, who, ": ", image.dim(1), "x",
        image.dim(0), " is larger than ", kMaxImageSide, " pixels a side");
  return image.contiguous();
}

}  // namespace

bool has_image_extension(const std::string& path) {
  static constexpr const char* kKnown[] = {".png", ".jpg", ".jpeg", ".bmp", ".tga",
                                           ".gif", ".psd", ".ppm",  ".pgm", ".pnm"};
  const std::string ext = lower_extension(path);
  return std::any_of(std::begin(kKnown), std::end(kKnown), [&](const char* k) { return ext == k; });
}

Tensor read_image(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  check(!error, path, ": ", error.message());
  check(size > 0 && size <= uintmax_t(std::numeric_limits<int>::max()), path, ": ", size,
        " bytes cannot be an image");
  const std::string file = read_file(path);
  const auto* bytes = reinterpret_cast<const stbi_uc*>(file.data());
  int w = 0, h = 0, channels = 0;
  check(stbi_info_from_memory(bytes, int(file.size()), &w, &h, &channels), path, ": not an image (",
        stbi_failure_reason(), ")");
  check(w <= kMaxImageSide && h <= kMaxImageSide && int64_t(w) * h <= kMaxImagePixels, path, ": ", w, "x", h,
        " is larger than the limit of ", kMaxImageSide, " pixels a side and ", kMaxImagePixels, " in all");
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(bytes, int(file.size()), &w, &h, &channels, 3), stbi_image_free);
  check(pixels != nullptr, path, ": damaged image (", stbi_failure_reason(), ")");
  Tensor image({h, w, 3}, DType::u8);
  std::copy_n(pixels.get(), image.numel(), image.data<uint8_t>());
  return image;
}

void write_png(const std::string& path, const Tensor& image) {
  const Tensor dense = checked(image, "write_png");
  std::string bytes;
  const int w = int(dense.dim(1)), h = int(dense.dim(0));
  check(stbi_write_png_to_func(append, &bytes, w, h, 3, dense.raw(), 3 * w), path, ": PNG encoding failed");
  write_file(path, bytes);
}

void write_jpeg(const std::string& path, const Tensor& image, int quality) {
  check(quality >= 1 && quality <= 100, "write_jpeg: quality ", quality, " is outside 1..100");
  const Tensor dense = checked(image, "write_jpeg");
  std::string bytes;
  check(stbi_write_jpg_to_func(append, &bytes, int(dense.dim(1)), int(dense.dim(0)), 3, dense.raw(), quality),
        path, ": JPEG encoding failed");
  write_file(path, bytes);
}

}  // namespace rivulet
