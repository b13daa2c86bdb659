// Image files through stb: PNG, JPEG, BMP, TGA, GIF (first frame), PSD, HDR and PNM in, PNG and JPEG out.
// Images are u8 [H, W, 3] RGB. Grey is spread over the three channels; alpha and EXIF rotation are ignored.
#pragma once

#include <string>

#include "tensor/tensor.h"

namespace rivulet {

// Larger sides and areas are refused before anything is decoded, so a few hostile bytes cannot ask for
// gigabytes.
inline constexpr int64_t kMaxImageSide = 16384;
inline constexpr int64_t kMaxImagePixels = int64_t(128) << 20;

// Throws an Error that names the file when it is missing, too large, or not an image.
Tensor read_image(const std::string& path);
bool has_image_extension(const std::string& path);

// Written under a temporary name and renamed, so a failed write leaves no half image.
void write_png(const std::string& path, const Tensor& image);
void write_jpeg(const std::string& path, const Tensor& image, int quality = 90);  // quality 1..100

}  // namespace rivulet
