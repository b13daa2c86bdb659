#include "train/footage.h"

#include <algorithm>
#include <cmath>

#include "tensor/parallel.h"
#include "tensor/safetensors.h"
#include "train/pixel.h"

namespace rivulet {
namespace {

bool is_photo(const FootageItem& item) { return item.frames.dim(0) == 1; }

void check_item(const FootageItem& item) {
  const Tensor& f = item.frames;
  check(f.defined() && f.dtype() == DType::u8 && f.dims() == 4 && f.dim(3) == 3 && f.numel() > 0,
        "footage: ", item.name, " must be u8 [F, H, W, 3]");
}

// Frame `step` of a walk that turns back at both ends of a clip of n frames.
int64_t bounced(int64_t step, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1), m = ((step % period) + period) % period;
  return m < n ? m : period - m;
}

// One frame of an item, read bilinearly at any place; the edge repeats outside.
struct Picture {
  const uint8_t* data;
  int64_t h, w;

  Rgb at(float x, float y) const {
    x = std::clamp(x, 0.0f, float(w - 1));
    y = std::clamp(y, 0.0f, float(h - 1));
    const int64_t xi = std::min<int64_t>(int64_t(x), std::max<int64_t>(w - 2, 0));
    const int64_t yi = std::min<int64_t>(int64_t(y), std::max<int64_t>(h - 2, 0));
    const float fx = x - float(xi), fy = y - float(yi);
    const uint8_t* p = data + 3 * (yi * w + xi);
    const int64_t right = w > 1 ? 3 : 0, down = h > 1 ? 3 * w : 0;
    const auto channel = [&](int c) {
      const float top = mix(float(p[c]), float(p[right + c]), fx);
      const float bottom = mix(float(p[down + c]), float(p[down + right + c]), fx);
      return mix(top, bottom, fy) * (1 / 255.0f);
    };
    return {channel(0), channel(1), channel(2)};
  }
};

}  // namespace

Footage::Footage(std::vector<FootageItem> items) : items_(std::move(items)) {
  check(!items_.empty(), "footage: no clips and no photos");
  // Moving pictures teach motion, photos bring variety: each kind as a whole is taken equally often.
  double photos = 0;
  for (const FootageItem& item : items_) {
    check_item(item);
    photos += is_photo(item);
  }
  const double clips = static_cast<double>(items_.size()) - photos;
  double sum = 0;
  for (const FootageItem& item : items_) share_.push_back(sum += 1 / (is_photo(item) ? photos : clips));
}

Footage Footage::open(const std::string& path) {
  const SafeTensors file(path);
  const auto about = [&](const std::string& key) {
    const auto it = file.metadata().find(key);
    check(it != file.metadata().end() && !it->second.empty(), path, ": the metadata has no \"", key, "\"");
    return it->second;
  };
  std::vector<FootageItem> items;
  for (const auto& [name, tensor] : file.tensors()) {
    check(name.rfind("clip.", 0) == 0 || name.rfind("photo.", 0) == 0, path, ": tensor \"", name,
          "\" is neither a clip nor a photo");
    items.push_back({name, about(name + ".origin"), about(name + ".licence"), tensor});
  }
  check(!items.empty(), path, ": no clips and no photos");
  return Footage(std::move(items));
}

CameraPath Footage::random_path(Rng& rng, int64_t frames, int64_t height, int64_t width) const {
  CameraPath path;
  const double pick = rng.uniform(0, share_.back());
  path.item = std::lower_bound(share_.begin(), share_.end() - 1, pick) - share_.begin();
  const FootageItem& item = items_[path.item];
  const int64_t n = item.frames.dim(0);
  const double h = double(item.frames.dim(1)), w = double(item.frames.dim(2));
  path.start = rng.below(n);
  path.direction = n == 1 || rng.uniform() < 0.1 ? 0 : rng.uniform() < 0.5 ? 1 : -1;
  path.mirrored = rng.uniform() < 0.5;
  const bool moves = n == 1 || rng.uniform() < 0.5;
  // The widest window that fits, down to 45 % of it.
  const double widest = std::min(h / double(height), w / double(width));
  const double closest = std::min(widest, std::max(0.45 * widest, 0.7));
  const auto place = [&](double scale, double extent, int64_t size) {
    const double half = 0.5 * scale * double(size);
    return rng.uniform(half, std::max(half, extent - half));
  };
  path.scale0 = rng.uniform(closest, widest);
  path.x0 = place(path.scale0, w, width);
  path.y0 = place(path.scale0, h, height);
  path.x1 = path.x0, path.y1 = path.y0, path.scale1 = path.scale0;
  if (!moves) return path;
  path.scale1 = std::clamp(path.scale0 * rng.uniform(0.88, 1.13), closest, widest);
  // At most 2 % of the window per frame and a quarter of it in all: faster would be a whip pan.
  const auto glide = [&](double from, double extent, int64_t size) {
    const double half = 0.5 * path.scale1 * double(size);
    const double reach = half * std::min(0.5, 0.04 * double(frames));
    return std::clamp(from + rng.uniform(-reach, reach), half, std::max(half, extent - half));
  };
  path.x1 = glide(path.x0, w, width);
  path.y1 = glide(path.y0, h, height);
  return path;
}

Tensor Footage::render(const CameraPath& path, int64_t frames, int64_t height, int64_t width) const {
  check(frames > 0 && height > 0 && width > 0, "footage: cannot render ", frames, " frames of ", width, "x",
        height);
  const Tensor source = items_.at(path.item).frames.contiguous();
  const int64_t n = source.dim(0), h = source.dim(1), w = source.dim(2);
  Tensor result({frames, height, width, 3});
  float* out = result.data<float>();
  const uint8_t* in = source.data<uint8_t>();
  parallel_for(frames * height, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t f = row / height, y = row % height;
      const float t = frames > 1 ? float(f) / float(frames - 1) : 0;
      const float scale = mix(float(path.scale0), float(path.scale1), t);
      const float cx = mix(float(path.x0), float(path.x1), t), cy = mix(float(path.y0), float(path.y1), t);
      const Picture picture{in + 3 * h * w * bounced(path.start + path.direction * f, n), h, w};
      // Enough taps that none of the item's pixels is skipped.
      const int taps = std::clamp(int(std::ceil(scale - 0.25f)), 1, 8);
      const float step = scale / float(taps), share = 1 / float(taps * taps);
      for (int64_t x = 0; x < width; ++x) {
        const int64_t column = path.mirrored ? width - 1 - x : x;
        const float left = cx + scale * (float(column) - 0.5f * float(width)) - 0.5f;
        const float top = cy + scale * (float(y) - 0.5f * float(height)) - 0.5f;
        Rgb sum;
        for (int j = 0; j < taps; ++j)
          for (int i = 0; i < taps; ++i)
            sum = sum + picture.at(left + (float(i) + 0.5f) * step, top + (float(j) + 0.5f) * step);
        store_pixel(out + 3 * (row * width + x), sum * share);
      }
    }
  });
  return result;
}

void save_footage(const std::string& path, const std::vector<FootageItem>& items) {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  for (const FootageItem& item : items) {
    check_item(item);
    check(tensors.emplace(item.name, item.frames).second, "footage: ", item.name, " stands twice");
    metadata[item.name + ".origin"] = item.origin;
    metadata[item.name + ".licence"] = item.licence;
  }
  save_safetensors(path, tensors, metadata);
}

}  // namespace rivulet
