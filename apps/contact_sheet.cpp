#include "apps/contact_sheet.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "ops/shape.h"

#include <stb_easy_font.h>

namespace rivulet {
namespace {

constexpr int64_t kCellSide = 320, kGap = 4;
constexpr int kBackground = 24;

int64_t text_width(const std::string& text, int64_t scale) {
  std::string copy = text;
  return stb_easy_font_width(copy.data()) * scale;
}

// Height of the bar that holds a line of text at this scale.
int64_t bar_height(int64_t scale) { return 12 * scale; }

void put(const Tensor& canvas, int64_t x, int64_t y, const Tensor& image) {
  canvas.slice(0, y, y + image.dim(0)).slice(1, x, x + image.dim(1)).copy_from(image);
}

FrameSize cell_size(const FrameSize& frame) {
  const double scale = std::min(1.0, double(kCellSide) / double(std::max(frame.width, frame.height)));
  const auto side = [&](int64_t n) { return std::max<int64_t>(1, std::llround(double(n) * scale)); };
  return {side(frame.width), side(frame.height)};
}

struct Grid {
  int64_t columns, rows, text_scale;
  FrameSize cell, size;  // of one clip with its bar, and of the whole (even)

  Grid(int64_t clips, const FrameSize& clip) {
    const bool one_row = clips <= 3 || (clip.width < clip.height && clips <= 4);
    columns = one_row ? clips : int64_t(std::ceil(std::sqrt(double(clips))));
    rows = (clips + columns - 1) / columns;
    text_scale = std::max<int64_t>(1, std::min(clip.width, clip.height) / 150);
    cell = {clip.width, clip.height + bar_height(text_scale)};
    size = {columns * (cell.width + kGap) - kGap, rows * (cell.height + kGap) - kGap};
    size.width += size.width % 2;
    size.height += size.height % 2;
  }
};

}  // namespace

void draw_text(const Tensor& image, int64_t x, int64_t y, const std::string& text, int64_t scale,
               int64_t width) {
  check(image.dtype() == DType::u8 && image.dims() == 3 && image.dim(2) == 3 && image.is_contiguous(),
        "draw_text: needs a dense u8 [H, W, 3], got ", image.dtype(), " ", image.shape());
  std::string line;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x80 && c < 0xc0) continue;  // the later bytes of a UTF-8 letter
    line += c >= 32 && c < 127 ? char(c) : '?';
  }
  if (text_width(line, scale) > width) {
    while (!line.empty() && text_width(line + "...", scale) > width) line.pop_back();
    line += "...";
  }
  struct Vertex {
    float x, y, z;
    unsigned char color[4];
  };
  // At most 270 bytes of quads per letter, by the font's own account.
  std::vector<Vertex> quads(line.size() * 270 / sizeof(Vertex) + 16);
  const int n =
      stb_easy_font_print(0, 0, line.data(), nullptr, quads.data(), int(quads.size() * sizeof(Vertex)));
  for (int q = 0; q < n; ++q) {
    const Vertex &a = quads[size_t(q) * 4], &b = quads[size_t(q) * 4 + 2];  // opposite corners
    const auto clip = [](int64_t v, int64_t end) { return std::clamp<int64_t>(v, 0, end); };
    const int64_t left = clip(x + int64_t(a.x) * scale, image.dim(1)),
                  right = clip(x + int64_t(b.x) * scale, image.dim(1));
    const int64_t top = clip(y + int64_t(a.y) * scale, image.dim(0)),
                  bottom = clip(y + int64_t(b.y) * scale, image.dim(0));
    for (int64_t row = top; row < bottom && left < right; ++row)
      std::memset(image.data<uint8_t>() + (row * image.dim(1) + left) * 3, 255, size_t(right - left) * 3);
  }
}

Tensor contact_sheet(const std::vector<Strip>& strips, const std::vector<double>& seconds) {
  check(!strips.empty() && !seconds.empty(), "contact_sheet: ", strips.size(), " strips of ", seconds.size(),
        " frames");
  const int64_t columns = int64_t(seconds.size()), scale = 2, bar = bar_height(scale);
  for (const Strip& s : strips)
    check(s.frames.dims() == 4 && s.frames.dim(0) == columns, "contact_sheet: '", s.label, "' has frames ",
          s.frames.shape(), " for ", columns, " times");
  std::vector<FrameSize> cells;
  int64_t width = 0, height = bar;
  for (const Strip& s : strips) {
    cells.push_back(cell_size(size_of_frames(s.frames)));
    width = std::max(width, columns * (cells.back().width + kGap) + kGap);
    height += bar + cells.back().height + kGap;
  }
  const Tensor sheet({height, width, 3}, DType::u8);
  sheet.fill(kBackground);
  for (int64_t c = 0; c < columns; ++c) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f s", seconds[size_t(c)]);
    draw_text(sheet, kGap + c * (cells[0].width + kGap), kGap, text, scale, cells[0].width);
  }
  int64_t y = bar;
  for (size_t i = 0; i < strips.size(); ++i) {
    draw_text(sheet, kGap, y + kGap, strips[i].label, scale, width - 2 * kGap);
    const Tensor small = resize_frames(strips[i].frames, cells[i]);
    for (int64_t c = 0; c < columns; ++c)
      put(sheet, kGap + c * (cells[i].width + kGap), y + bar, small.select(0, c));
    y += bar + cells[i].height + kGap;
  }
  return sheet;
}

SheetSampler::SheetSampler(std::vector<std::string> labels, int64_t columns)
    : labels_(std::move(labels)), columns_(columns) {
  check(columns >= 1, "contact sheet: ", columns, " columns");
}

void SheetSampler::add(const Tensors& strips) {
  check(strips.size() == labels_.size(), "contact sheet: ", strips.size(), " strips, ", labels_.size(),
        " labels");
  const int64_t n = strips[0].dim(0);
  for (int64_t i = (stride_ - seen_ % stride_) % stride_; i < n; i += stride_) {
    Moment moment{seen_ + i, {}};
    for (const Tensor& s : strips) {
      const Tensor frame = s.slice(0, i, i + 1).contiguous();
      moment.frames.push_back(resize_frames(frame, cell_size(size_of_frames(frame))).clone());
    }
    kept_.push_back(std::move(moment));
  }
  seen_ += n;
  while (int64_t(kept_.size()) > 8 * columns_) {
    stride_ *= 2;
    std::erase_if(kept_, [&](const Moment& m) { return m.index % stride_ != 0; });
  }
}

Tensor SheetSampler::sheet(double frames_per_second) const {
  check(!kept_.empty(), "contact sheet: no frames were seen");
  const int64_t have = int64_t(kept_.size()), columns = std::min(columns_, have);
  std::vector<double> seconds;
  std::vector<Tensors> cells(labels_.size());
  for (int64_t c = 0; c < columns; ++c) {
    const Moment& m = kept_[size_t(columns == 1 ? have / 2 : c * (have - 1) / (columns - 1))];
    seconds.push_back(double(m.index) / frames_per_second);
    for (size_t s = 0; s < labels_.size(); ++s) cells[s].push_back(m.frames[s]);
  }
  std::vector<Strip> strips;
  for (size_t s = 0; s < labels_.size(); ++s) strips.push_back({labels_[s], cat(cells[s], 0)});
  return contact_sheet(strips, seconds);
}

FrameSize side_by_side_size(int64_t clips, const FrameSize& clip) { return Grid(clips, clip).size; }

Tensor side_by_side(const std::vector<Strip>& strips) {
  check(!strips.empty(), "side_by_side: no clips");
  const Shape shape = strips[0].frames.shape();
  const Grid grid(int64_t(strips.size()), size_of_frames(strips[0].frames));
  const Tensor all({shape[0], grid.size.height, grid.size.width, 3}, DType::u8);
  all.fill(kBackground);
  for (size_t i = 0; i < strips.size(); ++i) {
    check(strips[i].frames.shape() == shape, "side_by_side: '", strips[i].label, "' has frames ",
          strips[i].frames.shape(), ", '", strips[0].label, "' ", shape);
    const int64_t x = int64_t(i) % grid.columns * (grid.cell.width + kGap);
    const int64_t y = int64_t(i) / grid.columns * (grid.cell.height + kGap),
                  bar = bar_height(grid.text_scale);
    for (int64_t f = 0; f < shape[0]; ++f) {
      const Tensor frame = all.select(0, f);
      draw_text(frame, x + kGap, y + 3 * grid.text_scale, strips[i].label, grid.text_scale,
                grid.cell.width - 2 * kGap);
      put(frame, x, y + bar, strips[i].frames.select(0, f));
    }
  }
  return all;
}

}  // namespace rivulet
