// The memory of a stream as tensors of a safetensors file; its counters are the caller's to keep.
#pragma once

#include "models/sana_streaming/dit.h"

namespace rivulet {

// Adds "<prefix>blocks.<i>.gdn.kv", ".gdn.z", ".conv_tail" and ".window.<chunk>.k" and ".v", on the CPU.
void put_stream(const StreamState& state, const std::string& prefix, std::map<std::string, Tensor>& tensors);
// The reverse. Throws on counters out of range and on names that are not of a memory.
StreamState get_stream(const SafeTensors& file, const std::string& prefix, int64_t chunk, int64_t frames,
                       int64_t blocks);
void move_to(StreamState& state, Device device);

}  // namespace rivulet
