// A block of bytes with an owner. Tensors share it; the last one frees it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "tensor/device.h"

namespace rivulet {

class Storage {
 public:
  // Bytes on `device`, 64-byte aligned, from the current arena if one is in scope. Not initialised.
  static std::shared_ptr<Storage> allocate(int64_t bytes, Device device);
  // Borrows memory that `release` gives back (a mapped file, an arena slot).
  static std::shared_ptr<Storage> borrow(void* data, int64_t bytes, Device device,
                                         std::function<void()> release);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  Storage(void* data, int64_t bytes, Device device, std::function<void()> release)
      : data_(data), bytes_(bytes), device_(device), release_(std::move(release)) {}
  void* data_;
  int64_t bytes_;
  Device device_;
  std::function<void()> release_;
};

// Heap bytes held by CPU tensors now and at most so far in this process (arenas count as held whole), and
// bytes of freed blocks kept for the next tensors of their size: at most 128 MiB.
struct MemoryUse {
  int64_t now = 0, peak = 0, spare = 0;
};
MemoryUse cpu_memory();

// A bump allocator for one step of work. Run the same step twice with a reset between, and every tensor
// gets the address it had before: what a captured CUDA graph needs, and no malloc on the hot path.
//   Arena arena(64 << 20);
//   { ArenaScope use(arena); step(); }     // everything allocated here lives in the arena
//   arena.reset();                         // throws if a tensor of the step is still alive
//
// With Reuse::yes the room of a tensor that has died serves the next one that fits, lowest address first:
// addresses still repeat with the step, and it needs the room of the tensors alive at one time only. Then the
// arena belongs to one thread, and on a GPU to work in stream order.
class Arena {
 public:
  enum class Reuse : uint8_t { no, yes };
  explicit Arena(int64_t capacity, Device device = Device::cpu, Reuse reuse = Reuse::no);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void reset();
  int64_t used() const;  // the room up to the end of the last tensor
  int64_t peak() const;  // the most used so far
  int64_t capacity() const;
  struct Block;

 private:
  friend class ArenaScope;
  std::shared_ptr<Block> block_;
};

// Routes allocations of the arena's device on this thread into it; scopes nest.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  std::shared_ptr<Arena::Block> previous_;
};

}  // namespace rivulet
