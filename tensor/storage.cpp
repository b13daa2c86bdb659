#include "tensor/storage.h"

#include <atomic>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "tensor/kernels.h"

namespace rivulet {

Device device_named(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  check(name == "cuda", "device '", name, "' is neither cpu nor cuda");
  check(kHasCuda, "device cuda: this program was built without CUDA");
  return Device::cuda;
}
namespace {

constexpr int64_t kAlignment = 64;

int64_t round_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Accounting only; no behaviour depends on these.
std::atomic<int64_t> bytes_now{0}, bytes_peak{0};

// Freed blocks by size, to be handed out again: fresh memory from the system costs a page fault and a cleared
// page every 4 KiB, as much as a cheap op itself. Four sizes to an octave, so at most a quarter is unused.
class SpareBlocks {
 public:
  // The size of the block that serves `bytes`.
  static int64_t block_size(int64_t bytes) {
    const int64_t needed = round_up(std::max<int64_t>(bytes, 1));
    const int64_t step = std::max<int64_t>(kAlignment, int64_t(std::bit_floor(uint64_t(needed))) / 4);
    return (needed + step - 1) / step * step;
  }

  // A block of this size, or null.
  void* take(int64_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = blocks_.find(size);
    if (it == blocks_.end() || it->second.empty()) return nullptr;
    void* p = it->second.back();
    it->second.pop_back();
    held_ -= size;
    return p;
  }

  void give(void* p, int64_t size) {
    std::map<int64_t, std::vector<void*>> dropped;
    if (size > kMost / 4) {
      std::free(p);
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // Full: the sizes kept are not the ones in use, so all go.
      if (held_ + size > kMost) {
        dropped.swap(blocks_);
        held_ = 0;
      }
      blocks_[size].push_back(p);
      held_ += size;
    }
    for (const auto& [dropped_size, list] : dropped)
      for (void* q : list) std::free(q);
  }

  int64_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

 private:
  static constexpr int64_t kMost = 128 << 20;
  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> blocks_;
  int64_t held_ = 0;
};

// Never destroyed: tensors of static storage are freed after everything else.
SpareBlocks& spare_blocks() {
  static SpareBlocks* const blocks = new SpareBlocks;
  return *blocks;
}

void* allocate_cpu(int64_t bytes) {
  const int64_t size = SpareBlocks::block_size(bytes);
  void* p = spare_blocks().take(size);
  if (p == nullptr) p = std::aligned_alloc(kAlignment, size_t(size));
  check(p != nullptr, "out of memory: asked for ", bytes, " bytes, tensors hold ", bytes_now.load());
  const int64_t now = bytes_now += bytes;
  int64_t peak = bytes_peak.load();
  while (now > peak && !bytes_peak.compare_exchange_weak(peak, now)) {
  }
  return p;
}

void release_cpu(void* p, int64_t bytes) {
  bytes_now -= bytes;
  spare_blocks().give(p, SpareBlocks::block_size(bytes));
}

void* allocate_on(Device device, int64_t bytes) {
  if constexpr (kHasCuda)
    if (device == Device::cuda) return cuda::allocate(bytes);
  check(device == Device::cpu, "storage: this build has no allocator for device ", device);
  return allocate_cpu(bytes);
}

void release_on(Device device, void* p, int64_t bytes) {
  if constexpr (kHasCuda)
    if (device == Device::cuda) return cuda::release(p, bytes);
  release_cpu(p, bytes);
}

}  // namespace

struct Arena::Block {
  char* base;
  int64_t capacity;
  Device device;
  const bool reuse;
  int64_t used = 0, peak = 0;
  std::atomic<int64_t> live{0};
  std::map<int64_t, int64_t> taken;  // offset and size of every living piece, when reuse is on
  Block(int64_t capacity, Device device, bool reuse)
      : base(static_cast<char*>(allocate_on(device, capacity))),
        capacity(capacity),
        device(device),
        reuse(reuse) {}
  ~Block() { release_on(device, base, capacity); }

  int64_t take(int64_t bytes) {
    const int64_t size = std::max(round_up(bytes), kAlignment);
    int64_t at = used;
    if (reuse) {
      at = 0;
      for (const auto& [offset, length] : taken) {
        if (offset - at >= size) break;
        at = offset + length;
      }
    }
    check(at + size <= capacity, "arena: asked for ", bytes, " bytes, ", used, " of ", capacity,
          " are in use");
    if (reuse) taken[at] = size;
    used = std::max(used, at + size);
    peak = std::max(peak, used);
    ++live;
    return at;
  }
  void give(int64_t at) {
    --live;
    if (!reuse) return;
    taken.erase(at);
    used = taken.empty() ? 0 : taken.rbegin()->first + taken.rbegin()->second;
  }
};

namespace {
thread_local std::shared_ptr<Arena::Block> current_arena;
}

std::shared_ptr<Storage> Storage::allocate(int64_t bytes, Device device) {
  check(bytes >= 0, "storage: asked for ", bytes, " bytes");
  if (const auto block = current_arena; block && block->device == device) {
    const int64_t at = block->take(bytes);
    return borrow(block->base + at, bytes, device, [block, at] { block->give(at); });
  }
  void* p = allocate_on(device, bytes);
  return borrow(p, bytes, device, [device, p, bytes] { release_on(device, p, bytes); });
}

std::shared_ptr<Storage> Storage::borrow(void* data, int64_t bytes, Device device,
                                         std::function<void()> release) {
  return std::shared_ptr<Storage>(new Storage(data, bytes, device, std::move(release)));
}

Storage::~Storage() {
  if (release_) release_();
}

MemoryUse cpu_memory() { return {bytes_now.load(), bytes_peak.load(), spare_blocks().held()}; }

Arena::Arena(int64_t capacity, Device device, Reuse reuse)
    : block_(std::make_shared<Block>(capacity, device, reuse == Reuse::yes)) {}
Arena::~Arena() = default;

void Arena::reset() {
  check(block_->live == 0, "arena: ", block_->live.load(), " tensors of the last step are still alive");
  block_->used = 0;
}
int64_t Arena::used() const { return block_->used; }
int64_t Arena::peak() const { return block_->peak; }
int64_t Arena::capacity() const { return block_->capacity; }

ArenaScope::ArenaScope(Arena& arena) : previous_(std::move(current_arena)) { current_arena = arena.block_; }
ArenaScope::~ArenaScope() { current_arena = std::move(previous_); }

}  // namespace rivulet
