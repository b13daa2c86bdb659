// Weights in PyTorch's zip and in shards: what is read, and what is refused and how.
#include "tensor/weight_file.h"

#include <doctest/doctest.h>

#include "tensor/pickle.h"
#include "tensor/safetensors.h"
#include "tensor/torch_file.h"
#include "tests/fixtures.h"
#include "tests/torch_writer.h"

using namespace rivulet;
namespace p = rivulet::pickled;

namespace {

const std::string kFloats = raw_bytes(std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
std::string floats(const std::vector<int64_t>& size, const std::vector<int64_t>& stride, int64_t offset = 0) {
  return p::tensor("FloatStorage", "0", 12, offset, size, stride);
}

struct Scene {
  TempDir dir;
  std::string path = dir / "w.pth";

  WeightFile open(const std::string& root, const std::vector<std::string>& storages = {kFloats}) const {
    write_bytes(path, torch_zip(root, storages).bytes());
    return open_weights(path);
  }
  // Every one of `parts` must be in the sentence, and the path.
  void refuses(const std::string& file_bytes, const std::vector<std::string>& parts) const {
    write_bytes(path, file_bytes);
    refuses_path(path, parts);
  }
  void refuses_root(const std::string& root, const std::vector<std::string>& parts,
                    const std::vector<std::string>& storages = {kFloats}) const {
    refuses(torch_zip(root, storages).bytes(), parts);
  }
  void refuses_path(const std::string& name, std::vector<std::string> parts) const {
    std::string said = "nothing";
    try {
      open_weights(name);
    } catch (const Error& e) {
      said = e.what();
    }
    parts.push_back(name);
    for (const std::string& part : parts) {
      CAPTURE(said);
      CAPTURE(part);
      CHECK(said.find(part) != said.npos);
    }
  }
};

std::vector<double> values(const Tensor& t) { return t.contiguous().to_vector(); }

}  // namespace

TEST_CASE("a PyTorch file: tensors of every type, strided and shared, in nested dicts") {
  Scene s;
  const std::vector<std::string> storages = {kFloats,
                                             raw_bytes(Tensor::of({1.5, -2, 0.25}, {3}, DType::bf16)),
                                             raw_bytes(Tensor::of({1, 65504}, {2}, DType::f16)),
                                             raw_bytes(std::vector<double>{3.25}),
                                             raw_bytes(std::vector<int64_t>{1, -2}),
                                             raw_bytes(std::vector<int32_t>{-7}),
                                             raw_bytes(std::vector<int16_t>{-3, 7}),
                                             raw_bytes(std::vector<int8_t>{-5, 100}),
                                             raw_bytes(std::vector<uint8_t>{200, 0, 1}),
                                             ""};
  const auto plain = [](const std::string& type, const std::string& key, int64_t n) {
    return p::tensor(type, key, n, 0, {n}, {1});
  };
  const WeightFile f = s.open(
      p::dict({{"whole", floats({2, 2, 3}, {6, 3, 1})},
               {"turned", floats({3, 4}, {1, 3})},
               {"part", floats({2, 2}, {3, 1}, 4)},
               {"bf16", plain("BFloat16Storage", "1", 3)},
               {"f16", plain("HalfStorage", "2", 2)},
               {"f64", p::tensor("DoubleStorage", "3", 1, 0, {}, {})},
               {"i64", plain("LongStorage", "4", 2)},
               {"i32", plain("IntStorage", "5", 1)},
               {"i16", plain("ShortStorage", "6", 2)},
               {"i8", plain("CharStorage", "7", 2)},
               {"u8", plain("ByteStorage", "8", 3)},
               {"flags", plain("BoolStorage", "8", 3)},
               {"empty", p::tensor("FloatStorage", "9", 0, 0, {0, 5}, {5, 1})},
               {"parameter", p::call(p::global("torch._utils", "_rebuild_parameter"),
                                     {floats({1}, {1}, 11), "\x88", p::ordered()})},
               {"eight",
                p::call(p::global("torch._utils", "_rebuild_tensor_v3"),
                        {p::storage("UntypedStorage", "8", 3), p::integer(1), p::integers({2}),
                         p::integers({1}), "\x89", p::ordered(), p::global("torch", "float8_e4m3fn"), "}"})},
               {"inner", p::dict({{"w", floats({1}, {1}, 5)}, {"note", p::text("no tensor")}})},
               {"step", p::integer(-70000)},
               {"lr", "G" + std::string("\x3f\xf0\0\0\0\0\0\0", 8)},
               {"list", "](" + p::integer(1) + "Ne"}}),
      storages);
  CHECK(f.tensors.size() == 16);
  CHECK_FALSE(f.has_state_dict);
  const auto at = [&](const char* name) { return f.tensors.at(name); };
  CHECK(at("whole").shape() == Shape{2, 2, 3});
  CHECK(values(at("whole")) == std::vector<double>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  CHECK(values(at("turned")) == std::vector<double>{0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11});
  CHECK(values(at("part")) == std::vector<double>{4, 5, 7, 8});
  CHECK(at("part").storage() == at("whole").storage());
  CHECK(at("bf16").dtype() == DType::bf16);
  CHECK(values(at("bf16")) == std::vector<double>{1.5, -2, 0.25});
  CHECK(values(at("f16")) == std::vector<double>{1, 65504});
  CHECK(at("f64").dims() == 0);
  CHECK(at("f64").item() == 3.25);
  CHECK(values(at("i64")) == std::vector<double>{1, -2});
  CHECK(values(at("i32")) == std::vector<double>{-7});
  CHECK(at("i16").dtype() == DType::i32);
  CHECK(values(at("i16")) == std::vector<double>{-3, 7});
  CHECK(values(at("i8")) == std::vector<double>{-5, 100});
  CHECK(values(at("u8")) == std::vector<double>{200, 0, 1});
  CHECK(at("flags").dtype() == DType::u8);
  CHECK(at("empty").shape() == Shape{0, 5});
  CHECK(values(at("parameter")) == std::vector<double>{11});
  CHECK(at("eight").dtype() == DType::f8_e4m3);
  CHECK(raw_bytes(at("eight")) == std::string("\0\1", 2));
  CHECK(values(at("inner.w")) == std::vector<double>{5});
}

TEST_CASE("a PyTorch file: weights kept inside of generator and state_dict, and protocol 5") {
  Scene s;
  const std::string w = p::dict({{"w", floats({1}, {1}, 3)}}), other = floats({2}, {1});
  CHECK(s.open(p::dict({{"generator", p::dict({{"state_dict", w}})}, {"x", other}})).tensors.count("w") == 1);
  CHECK(s.open(p::dict({{"state_dict", w}, {"x", other}})).tensors.size() == 1);
  CHECK(s.open(p::dict({{"state_dict", w}})).has_state_dict);
  CHECK_FALSE(s.open(p::dict({{"generator", w}})).has_state_dict);
  // Protocol 5: framed, globals from the stack, short strings and an implicit memo.
  const auto word = [](const std::string& t) { return "\x8c" + little(t.size(), 1) + t + "\x94"; };
  const std::string storage = "(" + word("storage") + word("torch") + word("FloatStorage") + "\x93\x94" +
                              word("0") + word("cpu") + "K\x0ct\x94Q";
  const std::string root = "\x95" + little(0, 8) + "}\x94" + word("w") + word("torch._utils") +
                           word("_rebuild_tensor_v2") + "\x93\x94(" + storage +
                           "K\2K\2\x85\x94K\3\x85\x94\x89" + word("collections") + word("OrderedDict") +
                           "\x93\x94)R\x94t\x94R\x94s";
  write_bytes(s.path, torch_zip(root, {kFloats}, 5).bytes());
  CHECK(values(open_weights(s.path).tensors.at("w")) == std::vector<double>{2, 5});
}

TEST_CASE("a file that PyTorch 1.13 wrote") {
  const WeightFile f = open_weights(RIVULET_SOURCE_DIR "/tests/data/torch_1_13.pth");
  CHECK(f.has_state_dict);
  CHECK(f.tensors.size() == 11);
  CHECK(values(f.tensors.at("a.slice")) == std::vector<double>{8, 9, 10, 14, 15, 16});
  CHECK(values(f.tensors.at("a.transposed")).at(1) == 6);
  CHECK(f.tensors.at("a.weight").shape() == Shape{2, 3, 4});
  CHECK(values(f.tensors.at("bf16")) == std::vector<double>{1.5, -2, 0.25});
  CHECK(values(f.tensors.at("half")) == std::vector<double>{1, 65504});
  CHECK(values(f.tensors.at("double")) == std::vector<double>{3.25});
  CHECK(values(f.tensors.at("long")) == std::vector<double>{1, -2});
  CHECK(values(f.tensors.at("bool")) == std::vector<double>{1, 0, 1});
  CHECK(values(f.tensors.at("short")) == std::vector<double>{-3, 7});
  CHECK(f.tensors.at("empty").shape() == Shape{0, 5});
  CHECK(values(f.tensors.at("param")) == std::vector<double>{1, 1});
}

TEST_CASE("a pickle that would run code is refused by the name of what it asks for") {
  Scene s;
  s.refuses_root(p::call(p::global("os", "system"), {p::text("touch /tmp/owned")}),
                 {"os.system", "nothing was run"});
  s.refuses_root(p::dict({{"w", p::call(p::global("builtins", "eval"), {p::text("1")})}}), {"builtins.eval"});
  const auto word = [](const std::string& t) { return "\x8c" + little(t.size(), 1) + t; };
  s.refuses_root(word("posix") + word("system") + "\x93" + p::tuple({p::text("true")}) + "R",
                 {"posix.system"});
  s.refuses_root("(" + p::text("true") + "ios\nsystem\n", {"os.system"});
  s.refuses_root(p::global("torch", "load"), {"torch.load"});
  s.refuses_root(p::global("numpy.core.multiarray", "scalar"), {"numpy.core.multiarray.scalar"});
  s.refuses_root("\x82\1", {"operation 130"});                                // an extension code
  s.refuses_root("(" + p::global("torch", "Size") + "o", {"operation 111"});  // an instance
  s.refuses_root("Psomething\n", {"operation 80"});
  s.refuses_root("\x8f", {"operation 143"});  // a set
  s.refuses_root(floats({1}, {1}) + "}b", {"sets the state"});
}

TEST_CASE("a damaged pickle") {
  Scene s;
  s.refuses_root("", {"0 values instead of one"});
  s.refuses_root("}}", {"2 values"});
  s.refuses_root("K", {"cut short"});
  s.refuses_root("0", {"empty stack"});
  s.refuses_root("t", {"mark that is not there"});
  s.refuses_root("h\7", {"recalls value 7"});
  s.refuses_root("}K\1a", {"needs a list", "a dict"});
  s.refuses_root("\x8a\x09" + std::string(9, '\1'), {"integer of 9 bytes"});
  s.refuses_root("X" + little(0xfffffff0u, 4) + "abc", {"cut short"});
  s.refuses_root("\x8d" + little(~0ull, 8) + "abc", {"cut short"});
  s.refuses_root(p::integer(3), {"holds an integer", "not a dict"});
  s.refuses(torch_zip("}", {}, 1).bytes(), {"protocol 1"});
  // A dict inside of itself, and one whose tensors double at each of thirty levels.
  s.refuses_root("}q\1" + p::text("again") + "h\1s", {"nested more than"});
  std::string doubled = floats({1}, {1}) + "q\1";
  for (int i = 0; i < 30; ++i) doubled += "0}(" + p::text("a") + "h\1" + p::text("b") + "h\1uq\1";
  s.refuses_root(doubled, {"more than 1048576 tensors"});
}

TEST_CASE("tensors and storages that reach outside") {
  Scene s;
  const auto one = [](const std::string& tensor) { return p::dict({{"w", tensor}}); };
  s.refuses_root(one(floats({13}, {1})), {"tensor w", "[13]", "outside of a storage of 12"});
  s.refuses_root(one(floats({2}, {1}, 11)), {"tensor w", "outside"});
  s.refuses_root(one(floats({1}, {1}, -1)), {"tensor w", "outside"});
  s.refuses_root(one(floats({3, 4}, {1, 4})), {"tensor w", "outside"});
  s.refuses_root(one(floats({2, 2}, {int64_t(1) << 62, 1})), {"outside"});
  s.refuses_root(one(floats({int64_t(1) << 40, int64_t(1) << 40}, {0, 0})), {"outside"});
  s.refuses_root(one(floats({1000000}, {0})), {"repeats the elements"});
  s.refuses_root(one(floats({-1}, {1})), {"below zero"});
  s.refuses_root(one(floats({2}, {-1}, 5)), {"below zero"});
  s.refuses_root(one(floats({2, 2}, {1})), {"2 dims, but 1 strides"});
  s.refuses_root(one(floats({1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1})), {"9 dims"});
  s.refuses_root(one(p::tensor("FloatStorage", "0", 13, 0, {1}, {1})), {"13 elements", "48 bytes"});
  s.refuses_root(one(p::tensor("FloatStorage", "0", -1, 0, {1}, {1})), {"-1 elements"});
  s.refuses_root(one(p::tensor("FloatStorage", "7", 1, 0, {1}, {1})), {"no member archive/data/7"});
  s.refuses_root(one(p::tensor("Size", "0", 12, 0, {1}, {1})), {"torch.Size is not a storage"});
  s.refuses_root(one(p::call(p::global("torch._utils", "_rebuild_tensor_v2"), {p::integer(1)})),
                 {"a persistent"});
  s.refuses_root(one(p::call(p::global("torch._utils", "_rebuild_tensor_v2"), {})), {"with 0 arguments"});
}

TEST_CASE("a zip that lies") {
  Scene s;
  const std::string root = p::dict({{"w", floats({12}, {1})}});
  const std::string good = torch_zip(root, {kFloats}).bytes();

  ZipWriter bomb = torch_zip(root, {kFloats});
  bomb.members[2].method = 8;
  bomb.members[2].claimed_size = 0xfffffffe;  // 48 bytes that would unpack to 4 GiB
  s.refuses(bomb.bytes(), {"archive/data/0", "compressed"});
  bomb = torch_zip(root, {kFloats});
  bomb.members[0].method = 8;
  s.refuses(bomb.bytes(), {"archive/data.pkl", "compressed"});
  bomb = torch_zip(root, {kFloats});
  bomb.members[2].claimed_size = 1u << 30;  // stored, but said to be larger
  s.refuses(bomb.bytes(), {"archive/data/0"});

  ZipWriter shared = torch_zip(root, {kFloats});
  shared.add("archive/data/1", kFloats).begin = 0;  // the place of the pickle
  s.refuses(shared.bytes(), {"archive/data/1", "its own header does not agree"});
  std::string reaching = good;  // a storage said to go on into the next member
  const size_t sizes = reaching.rfind("archive/data/0") - 26;
  reaching.replace(sizes, 8, little(130, 4) + little(130, 4));
  s.refuses(reaching, {"archive/data/0", "archive/version", "overlap"});
  ZipWriter twice = torch_zip(root, {kFloats});
  twice.add("archive/data/0", kFloats);
  s.refuses(twice.bytes(), {"archive/data/0", "twice"});
  ZipWriter pickles = torch_zip(root, {kFloats});
  pickles.add("other/data.pkl", p::file("}"));
  s.refuses(pickles.bytes(), {"two pickles"});
  ZipWriter big = torch_zip(root, {kFloats});
  big.members[1].data = "big";
  s.refuses(big.bytes(), {"little-endian"});
  ZipWriter none;
  none.add("readme.txt", "hello");
  s.refuses(none.bytes(), {"without data.pkl"});
  s.refuses(good.substr(0, good.size() - 30), {"zip"});
  s.refuses(good.substr(0, 40), {"zip"});
  std::string moved = good;  // the storage's place in the table of contents: beyond the file
  const size_t entry = moved.rfind("archive/data/0") - 46;
  moved.replace(entry + 42, 4, little(0x7fffffff, 4));
  s.refuses(moved, {"archive/data/0"});
}

TEST_CASE("files that are no weights at all") {
  Scene s;
  s.refuses("", {"empty"});
  s.refuses("abc", {"neither"});
  s.refuses(std::string(100, 'x'), {"neither"});
  s.refuses(std::string("\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15),
            {"legacy", "torch.save"});
  s.refuses_path(s.dir.path, {"folder"});
  s.refuses_path(s.dir / "absent.pth", {"No such file"});
}

TEST_CASE("shards and their index") {
  Scene s;
  const Tensor a = Tensor::of({1, 2}, {2}), b = Tensor::of({3}, {1}), c = Tensor::of({4, 5, 6}, {3});
  save_safetensors(s.dir / "m-1.safetensors", {{"a", a}, {"b", b}}, {{"format", "pt"}});
  write_bytes(s.dir / "m-2.bin", torch_zip(p::dict({{"c", floats({12}, {1})}}), {kFloats}).bytes());
  const std::string path = s.dir / "m.index.json";
  const auto index = [&](const std::string& map) {
    write_bytes(path, R"({"metadata": {"total_size": 60}, "weight_map": {)" + map + "}}");
  };
  const std::string good = R"("a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.bin")";
  index(good);
  const WeightFile f = open_weights(path);
  CHECK(f.tensors.size() == 3);
  CHECK(f.metadata.at("format") == "pt");
  CHECK(values(f.tensors.at("b")) == std::vector<double>{3});
  CHECK(values(f.tensors.at("c")).at(11) == 11);

  // Everything that is wrong is said at once.
  index(R"("a": "m-1.safetensors", "c": "m-1.safetensors", "d": "m-2.bin", "e": "m-3.bin", "f": "m-3.bin")");
  s.refuses_path(path, {"m-1.safetensors has no tensor c", "m-2.bin has no tensor d", "m-3.bin: No such file",
                        "m-1.safetensors holds b", "m-2.bin holds c"});
  index(R"("a": "../w.bin")");
  s.refuses_path(path, {"not a file beside it"});
  index(R"("a": 3)");
  s.refuses_path(path, {"the shard of a is 3"});
  index("");
  s.refuses_path(path, {"lists no tensors"});
  write_bytes(path, "{}");
  s.refuses_path(path, {"weight_map"});
  write_bytes(path, "[1");
  s.refuses_path(path, {"JSON"});
  index(good);
  std::string cut = read_file(s.dir / "m-1.safetensors");
  write_bytes(s.dir / "m-1.safetensors", cut.substr(0, cut.size() - 4));
  s.refuses_path(path, {"m-1.safetensors"});
  write_bytes(s.dir / "m-1.safetensors", "");
  s.refuses_path(path, {"m-1.safetensors: the file is empty"});
}

TEST_CASE("safetensors: integers without a type of their own are widened") {
  Scene s;
  const std::string header =
      R"({"b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},"i16":{"dtype":"I16","shape":[2],"data_offsets":[2,6]},)"
      R"("i8":{"dtype":"I8","shape":[1],"data_offsets":[6,7]},"u16":{"dtype":"U16","shape":[1],"data_offsets":[7,9]},)"
      R"("u32":{"dtype":"U32","shape":[1],"data_offsets":[9,13]}})";
  const std::string data = std::string("\1\0", 2) + raw_bytes(std::vector<int16_t>{-2, 300}) + "\xfb" +
                           raw_bytes(std::vector<uint16_t>{65535}) +
                           raw_bytes(std::vector<uint32_t>{4000000000u});
  write_bytes(s.path, little(header.size(), 8) + header + data);
  const WeightFile f = open_weights(s.path);
  CHECK(values(f.tensors.at("b")) == std::vector<double>{1, 0});
  CHECK(values(f.tensors.at("i16")) == std::vector<double>{-2, 300});
  CHECK(values(f.tensors.at("i8")) == std::vector<double>{-5});
  CHECK(values(f.tensors.at("u16")) == std::vector<double>{65535});
  CHECK(values(f.tensors.at("u32")) == std::vector<double>{4000000000.0});
}

TEST_CASE("what does not fit a model is listed at once") {
  const std::map<std::string, Tensor> have = {
      {"a", Tensor::of({1, 2}, {2})}, {"extra", Tensor::of({1}, {1})}, {"known", Tensor::of({1}, {1})}};
  const std::string text = misfits(have, {{"a", {3}}, {"b", {4, 5}}}, {{"known", {1}}});
  CHECK(text == "\n  a has shape [2], the model needs [3]\n  missing b [4, 5]\n  unknown extra [1]");
  CHECK(misfits(have, {{"a", {2}}}, {{"known", {1}}, {"extra", {1}}}).empty());
  CHECK(misfits(have, {{"a", {2}}}, {{"known", {2}}, {"extra", {1}}}) ==
        "\n  known has shape [1], the model knows it as [2]");
}

TEST_CASE("pages that were read can be given back") {
  Scene s;
  const Tensor big = full({1 << 20}, 3);
  save_safetensors(s.path, {{"big", big}, {"small", Tensor::of({7}, {1})}});
  const WeightFile f = open_weights(s.path);
  CHECK(values(f.tensors.at("big"))[12345] == 3);
  f.forget(f.tensors.at("big"));
  CHECK(values(f.tensors.at("big"))[12345] == 3);
  f.forget(big);  // not of the file: left alone
  CHECK(big.data<float>()[12345] == 3);
}

// Any byte may be anything: either the file is read, or an Error says why not.
TEST_CASE("random damage never does more than an Error") {
  Scene s;
  const std::string root =
      p::dict({{"generator", p::dict({{"state_dict", p::dict({{"a.weight", floats({3, 4}, {4, 1})},
                                                              {"b", floats({2, 2}, {3, 1}, 4)}})},
                                      {"step", p::integer(123456)}})},
               {"list", "](" + p::text("x") + "Ne"}});
  std::vector<std::pair<std::string, std::string>> files = {
      {"w.pth", torch_zip(root, {kFloats}).bytes()},
      {"w2.pth", read_file(RIVULET_SOURCE_DIR "/tests/data/torch_1_13.pth")}};
  save_safetensors(s.path, {{"a", Tensor::of({1, 2}, {2})}, {"b", Tensor::of({1, 2, 3}, {3}, DType::bf16)}});
  files.emplace_back("w.safetensors", read_file(s.path));
  files.emplace_back("w.index.json", R"({"metadata":{}, "weight_map": {"a": "w.pth", "b": "w2.pth"}})");
  Rng rng{20};
  const auto below = [&](size_t n) { return size_t(rand_uniform({1}, 0, double(n), rng).item()) % n; };
  int64_t refused = 0, read = 0;
  for (const auto& [name, bytes] : files)
    for (int i = 0; i < 500; ++i) {
      std::string spoilt = bytes;
      const size_t flips = 1 + below(4);
      for (size_t k = 0; k < flips; ++k) spoilt[below(spoilt.size())] ^= char(1 + below(255));
      if (i % 10 == 0) spoilt.resize(below(spoilt.size()));
      write_bytes(s.dir / name, spoilt);
      try {
        const WeightFile f = open_weights(s.dir / name);
        for (const auto& [tensor, t] : f.tensors) t.contiguous();
        ++read;
      } catch (const Error&) {
        ++refused;
      }
    }
  CHECK(refused > 500);
  CHECK(read > 50);
}
