// The memory of a stream, out of its fixed places and back.
#include <algorithm>

#include "models/sana_streaming/dit_stream.h"

namespace rivulet {

void DitStream::reset() {
  for (BlockMemory& m : memory_) {
    m.tail.fill(0);
    if (m.gdn.kv) m.gdn.kv.fill(0), m.gdn.z.fill(0);
    for (Slot& s : m.slots) s.frames = 0, s.chunk = -1;
  }
  chunk_ = frames_ = open_ = 0;
  remembered_ = false;
}

StreamState DitStream::state() const {
  check(open_ == 0, "dit stream: the state was asked for inside of a chunk");
  StreamState out;
  out.chunk = chunk_;
  out.frames = frames_;
  if (chunk_ == 0) return out;
  for (const BlockMemory& m : memory_) {
    BlockState b;
    b.conv_tail = m.tail.clone();
    if (m.gdn.kv) b.gdn = {m.gdn.kv.clone(), m.gdn.z.clone()};
    for (const Slot& s : m.slots)
      if (s.chunk >= 0)
        b.window.emplace_back(s.chunk, KeyValue{s.k.slice(1, 0, s.frames * S_).clone(),
                                                s.v.slice(1, 0, s.frames * S_).clone()});
    std::sort(b.window.begin(), b.window.end(),
              [](const auto& x, const auto& y) { return x.first < y.first; });
    out.blocks.push_back(b);
  }
  return out;
}

void DitStream::set_state(const StreamState& from) {
  const NoGrad off;
  reset();
  if (from.chunk == 0) return;
  check(from.blocks.size() == memory_.size(), "dit stream: a state of ", from.blocks.size(),
        " blocks for a model of ", memory_.size());
  for (size_t i = 0; i < memory_.size(); ++i) {
    BlockMemory& m = memory_[i];
    const BlockState& b = from.blocks[i];
    m.tail.copy_from(b.conv_tail.to(model_.device()));
    if (m.gdn.kv) m.gdn.kv.copy_from(b.gdn.kv.to(model_.device()));
    if (m.gdn.kv) m.gdn.z.copy_from(b.gdn.z.to(model_.device()));
    for (const auto& [chunk, kv] : b.window) {
      const int64_t slot = slot_for(chunk), n = kv.k.dim(1);
      check(slot >= 0 && slot < int64_t(m.slots.size()) && n % S_ == 0 && n <= m.slots[size_t(slot)].k.dim(1),
            "dit stream: the keys of chunk ", chunk, " in the state have ", n, " tokens, which do not fit");
      Slot& s = m.slots[size_t(slot)];
      s.k.slice(1, 0, n).copy_from(kv.k.to(model_.device()));
      s.v.slice(1, 0, n).copy_from(kv.v.to(model_.device()));
      s.frames = n / S_;
      s.chunk = chunk;
    }
  }
  chunk_ = from.chunk;
  frames_ = from.frames;
}

}  // namespace rivulet
