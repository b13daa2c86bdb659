#include "apps/serve/jpeg.h"

#include <turbojpeg.h>

#include "apps/serve/limits.h"

namespace rivulet::serve {
namespace {

uint8_t byte(std::string_view b, size_t i) { return i < b.size() ? uint8_t(b[i]) : 0; }
size_t word(std::string_view b, size_t i) { return size_t(byte(b, i)) << 8 | byte(b, i + 1); }

FrameSize read_frame_header(std::string_view b, size_t at) {
  const FrameSize size{int64_t(word(b, at + 5)), int64_t(word(b, at + 3))};
  const int colours = byte(b, at + 7);
  check(byte(b, at + 2) == 8 && (colours == 1 || colours == 3), "frame: a JPEG of ", colours,
        " colours, 1 or 3 are read");
  check(size.width > 0 && size.height > 0 && size.width <= kMaxFrameSide && size.height <= kMaxFrameSide,
        "frame: ", size, ", sides of 1 to ", kMaxFrameSide, " are read");
  return size;
}

struct Free {
  void operator()(unsigned char* p) const { tjFree(p); }
};

}  // namespace

FrameSize jpeg_size(std::string_view b) {
  check(byte(b, 0) == 0xff && byte(b, 1) == 0xd8, "frame: not a JPEG");
  // Segments up to the frame header: 0xff, marker, length of the rest.
  for (size_t at = 2; at + 4 <= b.size();) {
    check(byte(b, at) == 0xff, "frame: a damaged JPEG");
    const int marker = byte(b, at + 1);
    if (marker == 0xff) {
      ++at;
      continue;
    }
    const bool frame = marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    check(!frame || marker == 0xc0 || marker == 0xc1, "frame: a JPEG that is not baseline");
    if (frame) return read_frame_header(b, at + 2);
    const size_t length = word(b, at + 2);
    check(marker >= 0xc0 && marker < 0xff && (marker < 0xd0 || marker > 0xda) && length >= 2,
          "frame: a damaged JPEG");
    at += 2 + length;
  }
  fail("frame: a JPEG that ends before its picture");
}

struct JpegCodec::Handles {
  tjhandle in = tjInitDecompress(), out = tjInitCompress();
  ~Handles() {
    if (in != nullptr) tjDestroy(in);
    if (out != nullptr) tjDestroy(out);
  }
};

JpegCodec::JpegCodec() : handles_(std::make_unique<Handles>()) {
  check(handles_->in != nullptr && handles_->out != nullptr, "jpeg: not enough memory");
}
JpegCodec::~JpegCodec() = default;
JpegCodec::JpegCodec(JpegCodec&&) noexcept = default;
JpegCodec& JpegCodec::operator=(JpegCodec&&) noexcept = default;

Tensor JpegCodec::decode(std::string_view bytes, const FrameSize& least) {
  const FrameSize claimed = jpeg_size(bytes);
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  int width = 0, height = 0, sampling = 0, colours = 0;
  const int bad = tjDecompressHeader3(handles_->in, data, bytes.size(), &width, &height, &sampling, &colours);
  check(bad == 0 && width == claimed.width && height == claimed.height, "frame: a damaged JPEG");
  FrameSize size = claimed;
  for (int by : {2, 4, 8}) {
    const FrameSize smaller{(claimed.width + by - 1) / by, (claimed.height + by - 1) / by};
    if (smaller.width >= least.width && smaller.height >= least.height) size = smaller;
  }
  Tensor frame({1, size.height, size.width, 3}, DType::u8);
  // A picture with a damaged end is shown as far as it goes only by a lenient player; here it is refused.
  const int failed = tjDecompress2(handles_->in, data, bytes.size(), frame.data<uint8_t>(), int(size.width),
                                   int(size.width * 3), int(size.height), TJPF_RGB,
                                   TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS);
  check(failed == 0, "frame: a damaged JPEG");
  return frame;
}

std::string JpegCodec::encode(const Tensor& frame, int quality) {
  check(frame.dtype() == DType::u8 && frame.dims() == 3 && frame.dim(2) == 3 && frame.is_contiguous(),
        "jpeg: cannot encode ", frame.dtype(), " ", frame.shape());
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  const int failed =
      tjCompress2(handles_->out, frame.data<uint8_t>(), int(frame.dim(1)), int(frame.dim(1) * 3),
                  int(frame.dim(0)), TJPF_RGB, &bytes, &size, TJSAMP_420, quality, 0);
  const std::unique_ptr<unsigned char, Free> owner(bytes);
  check(failed == 0, "jpeg: ", tjGetErrorStr2(handles_->out));
  return std::string(reinterpret_cast<const char*>(bytes), size);
}

}  // namespace rivulet::serve
