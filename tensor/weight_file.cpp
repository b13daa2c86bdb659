#include "tensor/weight_file.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tensor/mapped_file.h"
#include "tensor/safetensors.h"
#include "tensor/torch_file.h"

namespace rivulet {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kMostIndex = 64 << 20;
constexpr size_t kMostLines = 1000;

bool is_index(const std::string& path) {
  const std::string tail = ".json";
  return path.size() > tail.size() && path.compare(path.size() - tail.size(), tail.size(), tail) == 0;
}

// A safetensors file opens with the length of its header, eight bytes of which the upper ones are zero.
bool is_safetensors(std::string_view bytes) {
  return bytes.size() > 8 && (bytes[8] == '{' || bytes.substr(5, 3) == std::string_view("\0\0\0", 3));
}

WeightFile open_one(const std::string& path) {
  WeightFile out;
  out.path = path;
  const auto file = map_file(path);
  const std::string_view bytes = bytes_of(*file);
  if (TorchFile::is_zip(bytes) || TorchFile::is_legacy(bytes)) {
    const TorchFile torch(path);
    out.tensors = torch.tensors();
    out.has_state_dict = torch.has_state_dict();
    out.mappings = {torch.mapping()};
  } else {
    check(is_safetensors(bytes), path, ": neither a safetensors file nor a PyTorch file");
    const SafeTensors safetensors(path);
    out.tensors = safetensors.tensors();
    out.metadata = safetensors.metadata();
    out.mappings = {safetensors.mapping()};
  }
  return out;
}

// {"metadata": {...}, "weight_map": {name: file in the same folder}}
std::map<std::string, std::string> read_index(const std::string& path) {
  const auto file = map_file(path);
  check(file->bytes() <= kMostIndex, path, ": an index of ", file->bytes(), " bytes");
  std::map<std::string, std::string> out;
  try {
    const auto json = nlohmann::json::parse(bytes_of(*file));
    check(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(), path,
          ": has no weight_map, so it is not an index of shards");
    for (const auto& [name, shard] : json["weight_map"].items()) {
      check(shard.is_string(), path, ": the shard of ", name, " is ", shard.dump());
      const std::string file_name = shard;
      check(!file_name.empty() && fs::path(file_name).filename() == file_name && file_name != "..", path,
            ": the shard of ", name, " is ", shard.dump(), ", which is not a file beside it");
      out[name] = file_name;
    }
  } catch (const nlohmann::json::exception& e) {
    fail(path, ": not valid JSON (", e.what(), ")");
  }
  check(!out.empty(), path, ": lists no tensors");
  return out;
}

// Lines to be shown together; hostile input cannot make the list endless.
class Problems {
 public:
  template <class... Parts>
  void add(const Parts&... parts) {
    if (++count_ > kMostLines) return;
    text_ << "\n  ";
    (text_ << ... << parts);
  }
  std::string text() const {
    if (count_ <= kMostLines) return text_.str();
    return text_.str() + "\n  and " + std::to_string(count_ - kMostLines) + " more";
  }

 private:
  std::ostringstream text_;
  size_t count_ = 0;
};

WeightFile open_shards(const std::string& path) {
  WeightFile out;
  out.path = path;
  const auto index = read_index(path);
  std::map<std::string, WeightFile> shards;
  Problems problems;
  for (const auto& [name, shard] : index) {
    if (shards.count(shard) != 0) continue;
    try {
      shards[shard] = open_one((fs::path(path).parent_path() / shard).string());
    } catch (const Error& e) {
      shards[shard] = {};
      problems.add(e.what());
    }
  }
  for (const auto& [name, shard] : index) {
    const WeightFile& file = shards[shard];
    const auto it = file.tensors.find(name);
    if (it != file.tensors.end())
      out.tensors[name] = it->second;
    else if (!file.path.empty())
      problems.add(shard, " has no tensor ", name);
  }
  for (const auto& [shard, file] : shards) {
    for (const auto& [name, t] : file.tensors)
      if (const auto it = index.find(name); it == index.end() || it->second != shard)
        problems.add(shard, " holds ", name, ", which is not in the index as there");
    for (const auto& [key, value] : file.metadata) out.metadata.emplace(key, value);
    out.has_state_dict |= file.has_state_dict;
    out.mappings.insert(file.mappings.begin(), file.mappings.end());
  }
  const std::string text = problems.text();
  check(text.empty(), path, ": the index and the shards do not agree:", text);
  return out;
}

}  // namespace

void WeightFile::forget(const Tensor& t) const {
  if (mappings.count(t.storage()) == 0 || t.numel() == 0) return;  // a copy
  int64_t last = 0;
  for (int d = 0; d < t.dims(); ++d) last += (t.dim(d) - 1) * t.strides()[d];
  forget_pages(t.raw(), (last + 1) * size_of(t.dtype()));
}

WeightFile open_weights(const std::string& path) {
  return is_index(path) ? open_shards(path) : open_one(path);
}

std::string misfits(const std::map<std::string, Tensor>& tensors, const NamedShapes& wanted,
                    const NamedShapes& optional) {
  Problems problems;
  for (const auto& [name, shape] : wanted) {
    const auto it = tensors.find(name);
    if (it == tensors.end())
      problems.add("missing ", name, " ", shape);
    else if (it->second.shape() != shape)
      problems.add(name, " has shape ", it->second.shape(), ", the model needs ", shape);
  }
  for (const auto& [name, t] : tensors) {
    if (wanted.count(name) != 0) continue;
    const auto it = optional.find(name);
    if (it == optional.end())
      problems.add("unknown ", name, " ", t.shape());
    else if (it->second != t.shape())
      problems.add(name, " has shape ", t.shape(), ", the model knows it as ", it->second);
  }
  return problems.text();
}

}  // namespace rivulet
