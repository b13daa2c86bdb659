// Frames of the wire: baseline JPEG in memory, to and from u8 [1, H, W, 3], through libjpeg-turbo.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "apps/frames.h"

namespace rivulet::serve {

// What the markers say, read before any decoder sees the bytes. Throws unless it is one baseline picture
// (progressive ones can make a decoder work for seconds) of 1 or 3 colours within kMaxFrameSide.
FrameSize jpeg_size(std::string_view bytes);

// Holds the decoder and encoder between frames; one thread at a time.
class JpegCodec {
 public:
  JpegCodec();
  ~JpegCodec();
  JpegCodec(JpegCodec&&) noexcept;
  JpegCodec& operator=(JpegCodec&&) noexcept;

  // Decoded at the smallest of the codec's own scales (1, 1/2, 1/4, 1/8) that still covers `least`.
  Tensor decode(std::string_view bytes, const FrameSize& least);
  // frame u8 [H, W, 3], dense.
  std::string encode(const Tensor& frame, int quality = 88);

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace rivulet::serve
