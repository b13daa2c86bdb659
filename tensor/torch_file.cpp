#include "tensor/torch_file.h"

#include <algorithm>

#include "tensor/mapped_file.h"
#include "tensor/pickle.h"
#include "tensor/zip.h"

namespace rivulet {
namespace {

using Node = Pickle::Node;
using Kind = Pickle::Kind;

constexpr int64_t kMostTensors = 1 << 20, kMostPickle = 64 << 20;
constexpr int kMostDepth = 32;

struct TypeName {
  const char* global;  // without "torch."
  FileType type;
};
constexpr TypeName kStorages[] = {
    {"DoubleStorage", {DType::f64, 8}},    {"FloatStorage", {DType::f32, 4}},
    {"BFloat16Storage", {DType::bf16, 2}}, {"HalfStorage", {DType::f16, 2}},
    {"LongStorage", {DType::i64, 8}},      {"IntStorage", {DType::i32, 4}},
    {"ShortStorage", {DType::i32, 2}},     {"CharStorage", {DType::i32, 1}},
    {"ByteStorage", {DType::u8, 1}},       {"BoolStorage", {DType::u8, 1}},
    {"UntypedStorage", {DType::u8, 1}},    {"storage.UntypedStorage", {DType::u8, 1}}};
// Newer types have no storage class: the tensor names its own.
constexpr TypeName kDtypes[] = {{"float64", {DType::f64, 8}},
                                {"float32", {DType::f32, 4}},
                                {"bfloat16", {DType::bf16, 2}},
                                {"float16", {DType::f16, 2}},
                                {"int64", {DType::i64, 8}},
                                {"int32", {DType::i32, 4}},
                                {"int16", {DType::i32, 2}},
                                {"int8", {DType::i32, 1}},
                                {"uint8", {DType::u8, 1}},
                                {"bool", {DType::u8, 1}},
                                {"float8_e4m3fn", {DType::f8_e4m3, 1}},
                                {"float8_e5m2", {DType::f8_e5m2, 1}},
                                {"uint16", {DType::i32, 2, false}},
                                {"uint32", {DType::i64, 4, false}}};
constexpr const char* kTensor = "torch._utils._rebuild_tensor_v2";
constexpr const char* kTypedTensor = "torch._utils._rebuild_tensor_v3";
constexpr const char* kParameter = "torch._utils._rebuild_parameter";
constexpr const char* kSize = "torch.Size";

template <size_t n>
const TypeName* named(const TypeName (&list)[n], const std::string& global) {
  for (const TypeName& entry : list)
    if (global == std::string("torch.") + entry.global) return &entry;
  return nullptr;
}

bool allowed(const std::string& global) {
  return global == kTensor || global == kTypedTensor || global == kParameter || global == kSize ||
         named(kStorages, global) || named(kDtypes, global);
}

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path), file_(map_file(path)) {
    const std::string_view bytes = bytes_of(*file_);
    check(!TorchFile::is_legacy(bytes), path,
          ": a PyTorch file in the legacy form from before version 1.6, which is one long pickle; load it in "
          "Python and torch.save it again");
    check(TorchFile::is_zip(bytes), path, ": not a PyTorch file, which is a zip");
    members_ = list_zip(bytes, path);
    for (const auto& [name, m] : members_) {
      const std::string tail = "data.pkl";
      if (name.size() < tail.size() || name.compare(name.size() - tail.size(), tail.size(), tail) != 0)
        continue;
      const std::string folder = name.substr(0, name.size() - tail.size());
      check(!folder_found_, path, ": holds two pickles, ", folder_, "data.pkl and ", name);
      folder_found_ = true;
      folder_ = folder;
    }
    check(folder_found_, path, ": a zip without data.pkl was not written by torch.save");
    if (const auto order = members_.find(folder_ + "byteorder"); order != members_.end())
      check(bytes.substr(size_t(order->second.begin), size_t(order->second.bytes)) == "little", path,
            ": its numbers are not little-endian");
  }

  const std::shared_ptr<rivulet::Storage>& file() const { return file_; }
  std::string_view pickle() const {
    const ZipMember& m = member("data.pkl");
    check(m.bytes <= kMostPickle, path_, ": a pickle of ", m.bytes, " bytes");
    return bytes_of(*file_).substr(size_t(m.begin), size_t(m.bytes));
  }

  // The tensor that a call describes; undefined for other calls.
  Tensor tensor(const Node& call, const std::string& name) const {
    const std::string where = path_ + ": tensor " + name;
    const Node* node = &call;
    if (node->text == kParameter) node = &argument(*node, 0, Kind::call, where);
    if (node->text != kTensor && node->text != kTypedTensor) return {};
    const Storage storage = read_storage(argument(*node, 0, Kind::persistent, where), where);
    FileType type = storage.type;
    if (node->text == kTypedTensor) {
      const TypeName* own = named(kDtypes, argument(*node, 6, Kind::global, where).text);
      check(own != nullptr, where, ": its type is not a dtype");
      type = own->type;
    }
    const int64_t offset = argument(*node, 1, Kind::integer, where).integer;
    const Shape shape = sizes(argument(*node, 2, where), where),
                strides = sizes(argument(*node, 3, where), where);
    check(shape.size() == strides.size(), where, ": ", shape.size(), " dims, but ", strides.size(),
          " strides");
    check_inside(shape, strides, offset, storage.bytes / type.bytes, where);
    return file_tensor(file_, storage.begin + offset * type.bytes, shape,
                       shape.numel() == 0 ? contiguous_strides(shape) : strides, type);
  }

 private:
  struct Storage {
    int64_t begin, bytes;
    FileType type;
  };

  const ZipMember& member(const std::string& name) const {
    const auto it = members_.find(folder_ + name);
    check(it != members_.end(), path_, ": has no member ", folder_, name);
    check(it->second.stored, path_, ": member ", folder_, name,
          " is compressed; torch.save stores its members as they are");
    return it->second;
  }
  static const Node& argument(const Node& call, size_t i, const std::string& where) {
    const auto& list = call.items[0]->items;
    check(i < list.size(), where, ": ", call.text, " with ", list.size(), " arguments");
    return *list[i];
  }
  static const Node& argument(const Node& call, size_t i, Kind kind, const std::string& where) {
    const Node& a = argument(call, i, where);
    check(a.kind == kind, where, ": argument ", i, " of ", call.text, " is ", name_of(a.kind), ", not ",
          name_of(kind));
    return a;
  }
  static Shape sizes(const Node& node, const std::string& where) {
    const Node* list = &node;
    if (node.kind == Kind::call && node.text == kSize) list = &argument(node, 0, where);
    check(list->kind == Kind::tuple || list->kind == Kind::list, where, ": its size is ",
          name_of(list->kind));
    check(list->items.size() <= size_t(kMaxDims), where, ": has ", list->items.size(), " dims, at most ",
          kMaxDims, " are supported");
    Shape out;
    for (const Node* n : list->items) {
      check(n->kind == Kind::integer && n->integer >= 0, where, ": a size or stride is ", name_of(n->kind),
            n->kind == Kind::integer ? " below zero" : "");
      out.push_back(n->integer);
    }
    return out;
  }
  // ("storage", class, name of the member, device, elements)
  Storage read_storage(const Node& persistent, const std::string& where) const {
    const Node& id = *persistent.items[0];
    check(id.kind == Kind::tuple && id.items.size() == 5 && id.items[0]->kind == Kind::text &&
              id.items[0]->text == "storage" && id.items[1]->kind == Kind::global &&
              id.items[2]->kind == Kind::text && id.items[4]->kind == Kind::integer,
          where, ": refers to something that is not a storage");
    const TypeName* type = named(kStorages, id.items[1]->text);
    check(type != nullptr, where, ": ", id.items[1]->text, " is not a storage");
    const ZipMember& m = member("data/" + id.items[2]->text);
    const int64_t count = id.items[4]->integer;
    check(count >= 0 && count <= m.bytes / type->type.bytes, where, ": storage ", id.items[2]->text, " of ",
          count, " elements lies outside of its ", m.bytes, " bytes");
    return {m.begin, count * type->type.bytes, type->type};
  }
  static void check_inside(const Shape& shape, const Shape& strides, int64_t offset, int64_t elements,
                           const std::string& where) {
    int64_t last = offset, count = 1, widest = 1;
    bool inside = offset >= 0 && offset <= elements, none = false;
    for (int d = 0; d < shape.size() && inside; ++d) {
      int64_t step = 0;
      none |= shape[d] == 0;
      inside = !__builtin_mul_overflow(std::max<int64_t>(shape[d] - 1, 0), strides[d], &step) &&
               !__builtin_add_overflow(last, step, &last) &&
               !__builtin_mul_overflow(count, shape[d], &count) &&
               !__builtin_mul_overflow(widest, std::max<int64_t>(shape[d], 1), &widest) &&
               widest <= int64_t(1) << 48;
    }
    inside = inside && (none || last < elements);
    check(inside, where, ": shape ", shape, " with strides ", strides, " from element ", offset,
          " lies outside of a storage of ", elements, " elements");
    // An expanded tensor could ask for any amount of memory once it is copied.
    check(count <= elements, where, ": shape ", shape, " repeats the elements of a storage of ", elements);
  }

  std::string path_;
  std::shared_ptr<rivulet::Storage> file_;
  std::map<std::string, ZipMember> members_;
  std::string folder_;  // "archive/"
  bool folder_found_ = false;
};

void gather(const Reader& reader, const Node& dict, const std::string& prefix, int depth,
            std::map<std::string, Tensor>& out, const std::string& path) {
  check(depth < kMostDepth, path, ": dicts nested more than ", kMostDepth, " deep");
  for (const auto& [key, value] : dict.pairs) {
    if (key->kind != Kind::text) continue;
    const std::string name = prefix + key->text;
    if (value->kind == Kind::dict) gather(reader, *value, name + ".", depth + 1, out, path);
    if (value->kind != Kind::call) continue;
    const Tensor t = reader.tensor(*value, name);
    if (!t) continue;
    check(out.size() < size_t(kMostTensors), path, ": more than ", kMostTensors, " tensors");
    check(out.emplace(name, t).second, path, ": tensor ", name, " stands there twice");
  }
}

}  // namespace

bool TorchFile::is_zip(std::string_view bytes) { return bytes.substr(0, 4) == "PK\3\4"; }

// A pickle of the number 0x1950a86a20f9469cfc6c, in protocol 2.
bool TorchFile::is_legacy(std::string_view bytes) {
  return bytes.size() >= 14 && bytes[0] == '\x80' &&
         bytes.substr(2, 12) == "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
}

TorchFile::TorchFile(const std::string& path) : path_(path) {
  const Reader reader(path);
  const Pickle pickle(reader.pickle(), path, allowed);
  mapping_ = reader.file();
  const Node* root = &pickle.root();
  check(root->kind == Kind::dict, path, ": holds ", name_of(root->kind), ", not a dict of tensors");
  for (const char* level : {"generator", "state_dict"})
    if (const Node* inner = root->find(level); inner && inner->kind == Kind::dict) {
      root = inner;
      has_state_dict_ |= std::string_view(level) == "state_dict";
    }
  gather(reader, *root, "", 0, tensors_, path);
}

}  // namespace rivulet
