// The loop of an edit: frames in, chunk by chunk through one or more editors, frames out. It knows nothing
// about models, so that anything which turns frames into frames can be run by it.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "apps/contact_sheet.h"
#include "apps/video.h"

namespace rivulet {

struct EditTrack {
  std::string label;
  // Edits one chunk: u8 [F, h, w, 3] to the same shape, h and w being EditStream::inner. An undefined result
  // says that the editor failed, for `guard` to deal with.
  std::function<Tensor(const Tensor& frames)> step;
  FrameSink* sink;
  // What the sink gets instead of `edit`, both at EditStream::outer; none to write the edit as it is.
  std::function<Tensor(const Tensor& source, const Tensor& edit)> guard = nullptr;
};

struct EditStream {
  FrameSource* source;
  std::vector<EditTrack> tracks;
  // How many frames the next step takes; 0 ends the edit.
  std::function<int64_t()> chunk_frames;
  std::function<void(const Tensor& frames)> look =
      nullptr;                              // sees the source, at its own size, before it is edited
  bool fill_chunks = true;                  // false: an editor gets a last chunk that is shorter as it is
  FrameSize inner;                          // what the editors see
  FrameSize outer;                          // what the sinks get
  FrameSink* compare = nullptr;             // source and edits side by side
  SheetSampler* sheet = nullptr;            // labels: source, then the tracks
  const std::atomic<bool>* stop = nullptr;  // looked at between chunks
  std::function<void(int64_t frames)> progress = [](int64_t) {};
};

// Frames edited. When the clip ends inside a chunk, its last frame fills the rest of the chunk
// (unless fill_chunks is off) and the extra results are dropped, so every track has exactly the frames of the
// source. Throws when the source has none. Nothing is finished: that is for the caller to do with the sinks.
int64_t run(const EditStream& stream);

}  // namespace rivulet
