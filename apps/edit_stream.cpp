#include "apps/edit_stream.h"

#include "ops/shape.h"

namespace rivulet {
namespace {

Tensor repeat_last(const Tensor& frames, int64_t n) {
  const int64_t have = frames.dim(0);
  if (have == n) return frames;
  Shape tail = frames.shape();
  tail[0] = n - have;
  return cat({frames, frames.slice(0, have - 1, have).expand(tail)}, 0);
}

// What a viewer compares with: the source at the size of the results.
void show(const EditStream& stream, const Tensor& source, const Tensors& edits) {
  if (stream.compare == nullptr && stream.sheet == nullptr) return;
  const Tensor shown = resize_frames(source, stream.outer);
  if (stream.compare != nullptr) {
    std::vector<Strip> strips = {{"source", shown}};
    for (size_t i = 0; i < edits.size(); ++i) strips.push_back({stream.tracks[i].label, edits[i]});
    stream.compare->write(side_by_side(strips));
  }
  if (stream.sheet != nullptr) {
    Tensors all = {shown};
    all.insert(all.end(), edits.begin(), edits.end());
    stream.sheet->add(all);
  }
}

// One track's chunk at the size of the results.
Tensor run_track(const EditTrack& track, const EditStream& stream, const Tensor& frames,
                 const Tensor& chunk) {
  Tensor edited = track.step(chunk);
  check(edited || track.guard, "edit: a step gave nothing");
  if (edited) {
    check(edited.shape() == chunk.shape(), "edit: a step turned ", chunk.shape(), " into ", edited.shape());
    edited = resize_frames(edited.slice(0, 0, frames.dim(0)).contiguous(), stream.outer);
  }
  return track.guard ? track.guard(resize_frames(frames, stream.outer), edited) : edited;
}

}  // namespace

int64_t run(const EditStream& stream) {
  int64_t done = 0;
  while (stream.stop == nullptr || !*stream.stop) {
    const int64_t n = stream.chunk_frames();
    if (n == 0) break;
    const Tensor frames = stream.source->read(n);
    if (!frames) break;
    const int64_t got = frames.dim(0);
    if (stream.look) stream.look(frames);
    const Tensor chunk = repeat_last(resize_frames(frames, stream.inner), stream.fill_chunks ? n : got);
    Tensors edits;
    for (const EditTrack& track : stream.tracks) {
      edits.push_back(run_track(track, stream, frames, chunk));
      track.sink->write(edits.back());
    }
    show(stream, frames, edits);
    done += got;
    stream.progress(done);
    if (got < n) break;
  }
  check(done > 0 || (stream.stop != nullptr && *stream.stop), stream.source->name(), ": holds no frames");
  return done;
}

}  // namespace rivulet
