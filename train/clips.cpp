#include "train/clips.h"

#include "ops/shape.h"
#include "tensor/autograd.h"

namespace rivulet {
namespace {

Tensor last_frames(const Tensor& x, int64_t n) { return x.slice(2, x.dim(2) - n, x.dim(2)); }

// What stands before the new frames: the picture where the window starts, then latents as they are.
Tensor overlap_of(const Tensor& before, const ClipRules& rules, const LastPicture& picture) {
  const int64_t overlap = rules.window - rules.fresh, replaced = before.dim(2) - overlap + 1;
  const NoGrad off;
  const Tensor image = picture(before.slice(2, 0, replaced));
  check(image.dims() == 5 && image.dim(2) == 1, "window: one picture became latents of shape ",
        image.shape());
  return overlap == 1 ? image : cat({image, last_frames(before, overlap - 1)}, 2);
}

}  // namespace

std::vector<int64_t> split_clip(int64_t frames, int64_t chunk) {
  check(chunk > 0 && frames >= chunk, "clips: ", frames, " frames hold no chunk of ", chunk);
  std::vector<int64_t> chunks(size_t(frames / chunk), chunk);
  chunks[0] += frames % chunk;
  return chunks;
}

std::vector<Clip> clips_of(int64_t length, const ClipRules& r) {
  check(r.fresh > 0 && r.fresh < r.window && r.fresh % r.chunk == 0, "clips: ", r.fresh,
        " new frames of a window of ", r.window, " in chunks of ", r.chunk);
  check(length >= r.window, "clips: a stream of ", length, " latent frames is shorter than a clip of ",
        r.window);
  std::vector<Clip> clips = {{0, r.window, 0, split_clip(r.window, r.chunk)}};
  for (int64_t at = r.window; at + r.fresh <= length; at += r.fresh)
    clips.push_back({at, r.fresh, at / r.chunk, split_clip(r.fresh, r.chunk)});
  return clips;
}

Window next_window(const Tensor& fresh, const Tensor& source, const ClipRules& rules, ClipHistory& history,
                   const LastPicture& last_picture) {
  check(fresh.shape() == source.shape(), "window: latents ", fresh.shape(), " beside a source ",
        source.shape());
  const Tensor mask = ones({rules.window});
  Window w{fresh, source, mask};
  const bool first = !history.latents;
  check(fresh.dim(2) == (first ? rules.window : rules.fresh), "window: ", fresh.dim(2), " new frames");
  Tensor all = fresh.detach(), all_source = source;
  if (!first) {
    mask.slice(0, 0, rules.window - rules.fresh).fill(0);
    w.latents = cat({overlap_of(history.latents, rules, last_picture), fresh}, 2);
    w.source = cat({overlap_of(history.source, rules, last_picture), source}, 2);
    all = cat({history.latents, all}, 2);
    all_source = cat({history.source, source}, 2);
  }
  history = {last_frames(all, rules.window).contiguous(), last_frames(all_source, rules.window).contiguous()};
  return w;
}

}  // namespace rivulet
