#include "models/sana_streaming/stream_file.h"

#include <algorithm>

namespace rivulet {
namespace {

Tensor optional_tensor(const SafeTensors& file, const std::string& name) {
  return file.contains(name) ? file.get(name) : Tensor();
}

}  // namespace

void put_stream(const StreamState& state, const std::string& prefix, std::map<std::string, Tensor>& tensors) {
  const auto put = [&](const std::string& name, const Tensor& t) {
    if (t.defined()) tensors[name] = t.detach().to(Device::cpu);
  };
  for (size_t i = 0; i < state.blocks.size(); ++i) {
    const BlockState& b = state.blocks[i];
    const std::string at = prefix + "blocks." + std::to_string(i) + ".";
    put(at + "gdn.kv", b.gdn.kv);
    put(at + "gdn.z", b.gdn.z);
    put(at + "conv_tail", b.conv_tail);
    for (const auto& [chunk, kv] : b.window) {
      put(at + "window." + std::to_string(chunk) + ".k", kv.k);
      put(at + "window." + std::to_string(chunk) + ".v", kv.v);
    }
  }
}

StreamState get_stream(const SafeTensors& file, const std::string& prefix, int64_t chunk, int64_t frames,
                       int64_t blocks) {
  StreamState state;
  state.chunk = chunk;
  state.frames = frames;
  check(chunk >= 0 && frames >= 0 && blocks >= 0 && blocks <= 1000, file.path(),
        ": the counters of the edit state are out of range");
  state.blocks.resize(size_t(blocks));
  for (int64_t i = 0; i < blocks; ++i) {
    BlockState& b = state.blocks[size_t(i)];
    const std::string at = prefix + "blocks." + std::to_string(i) + ".";
    b.gdn = {optional_tensor(file, at + "gdn.kv"), optional_tensor(file, at + "gdn.z")};
    b.conv_tail = optional_tensor(file, at + "conv_tail");
    const std::string window = at + "window.";
    for (const auto& [name, k] : file.tensors()) {
      if (name.rfind(window, 0) != 0 || name.substr(name.size() - 2) != ".k") continue;
      const std::string number = name.substr(window.size(), name.size() - window.size() - 2);
      check(!number.empty() && number.size() < 18 &&
                number.find_first_not_of("0123456789") == std::string::npos,
            file.path(), ": bad tensor name ", name);
      b.window.emplace_back(std::stoll(number), KeyValue{k, file.get(window + number + ".v")});
    }
    // By number: the file lists names as text, and sums follow the order of the window.
    std::sort(b.window.begin(), b.window.end(),
              [](const auto& x, const auto& y) { return x.first < y.first; });
  }
  return state;
}

void move_to(StreamState& state, Device device) {
  const auto move = [device](Tensor& t) {
    if (t.defined()) t = t.to(device);
  };
  for (BlockState& b : state.blocks) {
    move(b.gdn.kv), move(b.gdn.z), move(b.conv_tail);
    for (auto& [chunk, kv] : b.window) move(kv.k), move(kv.v);
  }
}

}  // namespace rivulet
