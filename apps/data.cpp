// rivulet data pack: videos and photos into a footage archive. rivulet data preview: what training will see.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>

#include "apps/commands.h"
#include "apps/contact_sheet.h"
#include "apps/video.h"
#include "ops/image_io.h"
#include "train/progress.h"
#include "train/shape_edit.h"

namespace rivulet {
namespace {

std::string stem(const std::string& path) { return std::filesystem::path(path).stem().string(); }

// A photo scaled down to cover `size`; its edges stay, since crops are cut from it later.
Tensor shrunk_photo(const std::string& path, const FrameSize& asked) {
  const Tensor image = read_image(path).unsqueeze(0);
  const FrameSize own = size_of_frames(image), size = orient(asked, own);
  const double scale =
      std::max(double(size.width) / double(own.width), double(size.height) / double(own.height));
  if (scale >= 1) return image;
  return resize_frames(image, {std::max<int64_t>(1, std::llround(scale * double(own.width))),
                               std::max<int64_t>(1, std::llround(scale * double(own.height)))});
}

// Frames from one clip's first frame to the next one's.
int64_t clip_distance(const DataPackOptions& o, int64_t frames_of_video) {
  if (o.every > 0) return o.every;
  const int64_t clips = std::max<int64_t>(1, o.frames / o.burst);
  return std::max(o.burst, frames_of_video / clips);
}

// Cuts short clips out of a video; frames between them are passed over.
void add_clips(const DataPackOptions& o, const std::string& path, std::vector<FootageItem>& items) {
  const auto source = open_source(path, {.size = parse_size(o.size)});
  const int64_t distance = clip_distance(o, source->info().frames);
  check(distance >= o.burst, "data pack: clips of ", o.burst, " frames cannot start every ", distance,
        " frames");
  int64_t taken = 0, number = 0;
  while (taken + o.burst <= o.frames) {
    const Tensor clip = source->read(o.burst);
    if (!clip.defined() || clip.dim(0) < o.burst) break;
    items.push_back({"clip." + stem(path) + "_" + std::to_string(number++),
                     o.origin.empty() ? path : o.origin, o.licence, clip});
    taken += o.burst;
    for (int64_t skip = distance - o.burst; skip > 0;) {
      const Tensor passed = source->read(std::min<int64_t>(skip, 16));
      if (!passed.defined()) return;
      skip -= passed.dim(0);
    }
  }
  check(number > 0, path, ": fewer than ", o.burst, " frames, not enough for one clip");
}

Tensor to_bytes(const Tensor& pixels) {
  Tensor bytes(pixels.shape(), DType::u8);
  const float* in = pixels.data<float>();
  for (int64_t i = 0; i < pixels.numel(); ++i) bytes.data<uint8_t>()[i] = uint8_t(in[i] * 255 + 0.5f);
  return bytes;
}

constexpr int64_t kCaption = 12;  // height of the text below each row

// Source, target and mask of the first and the last frame, with the edit and its instruction below.
void draw_sample(const Sample& s, const Tensor& sheet, int64_t y) {
  const int64_t h = s.source.dim(1), w = s.source.dim(2), last = s.source.dim(0) - 1;
  const Tensor grey = s.mask.unsqueeze(3).expand(s.source.shape()).contiguous();
  int64_t x = 0;
  for (const int64_t frame : {int64_t(0), last})
    for (const Tensor& t : {s.source, s.target, grey}) {
      sheet.slice(0, y, y + h).slice(1, x, x + w).copy_from(to_bytes(t.select(0, frame).contiguous()));
      x += w;
    }
  draw_text(sheet, 2, y + h + 2, s.edit.name() + ": " + s.instruction + " | back: " + s.inverse_instruction,
            1, x - 4);
}

}  // namespace

int run_data_pack(const DataPackOptions& o) {
  std::vector<FootageItem> items;
  Progress progress("packing", int64_t(o.in.size()));
  for (size_t i = 0; i < o.in.size(); ++i) {
    const std::string& path = o.in[i];
    if (has_image_extension(path)) {
      items.push_back({"photo." + stem(path), o.origin.empty() ? path : o.origin, o.licence,
                       shrunk_photo(path, parse_size(o.size))});
    } else if (std::filesystem::path(path).extension() == ".safetensors") {
      const Footage archive = Footage::open(path);
      items.insert(items.end(), archive.items().begin(), archive.items().end());
    } else {
      add_clips(o, path, items);
    }
    progress.update(int64_t(i) + 1, path);
  }
  save_footage(o.out, items);
  progress.finish();
  int64_t bytes = 0;
  for (const FootageItem& item : items) bytes += item.frames.bytes();
  std::cout << o.out << ": " << items.size() << " clips and photos, " << bytes / 1000000 << " MB\n";
  return 0;
}

int run_data_preview(const DataPreviewOptions& o) {
  std::shared_ptr<const Footage> footage;
  if (!o.footage.empty()) footage = std::make_shared<const Footage>(Footage::open(o.footage));
  ShapeEditConfig config;
  if (!o.mix.empty()) config = ShapeEditConfig::read(Fields(read_json(o.mix), o.mix));
  config.seed = o.seed;
  const ShapeEdit data(config, footage);
  const FrameSize size = parse_size(o.size);
  const Tensor sheet = zeros({o.count * (size.height + kCaption), 6 * size.width, 3}, DType::u8);
  for (int64_t i = 0; i < o.count; ++i)
    draw_sample(data.sample(i, {o.frames, size.height, size.width}), sheet, i * (size.height + kCaption));
  write_png(o.out, sheet);
  std::cout << o.out << ": " << o.count << " samples\n";
  return 0;
}

}  // namespace rivulet
