#include "tensor/safetensors.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "tensor/autograd.h"
#include "tensor/random.h"

using namespace rivulet;
namespace fs = std::filesystem;

namespace {

// A folder of its own that goes away with the test.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "safetensors_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const char* name) const { return (path / name).string(); }
  size_t files() const {
    return size_t(std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }
};

std::string bytes_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void put(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

std::string with_length(uint64_t header_bytes, const std::string& rest) {
  std::string s(8, '\0');
  std::memcpy(s.data(), &header_bytes, 8);
  return s + rest;
}

// A file with this header and `data` zero bytes behind it.
std::string file_of(const std::string& header, size_t data) {
  return with_length(header.size(), header + std::string(data, '\0'));
}

// The Error's text when opening a file of these bytes.
std::string refusal(const std::string& bytes) {
  const Folder dir;
  const std::string path = dir / "bad.safetensors";
  put(path, bytes);
  try {
    const SafeTensors file(path);
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("bad.safetensors") != std::string::npos);
    return e.what();
  }
  return "";
}

bool refused(const std::string& bytes, std::initializer_list<const char*> parts) {
  const std::string text = refusal(bytes);
  INFO(text);
  bool all = !text.empty();
  for (const char* p : parts) all = all && text.find(p) != std::string::npos;
  if (!all) MESSAGE("got: ", text);
  return all;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.contiguous().raw(), b.contiguous().raw(), size_t(a.bytes())) == 0;
}

constexpr DType kAll[] = {DType::f64, DType::f32, DType::bf16,    DType::f16,     DType::i64,
                          DType::i32, DType::u8,  DType::f8_e4m3, DType::f8_e5m2, DType::f4_e2m1x2};

}  // namespace

TEST_CASE("every dtype makes the round trip bit for bit") {
  const Folder dir;
  const std::string path = dir / "all.safetensors";
  Rng rng{1, 0};
  std::map<std::string, Tensor> tensors;
  for (DType d : kAll) {
    const Tensor t({3, 5, 2}, d);
    auto* p = static_cast<uint8_t*>(t.raw());
    for (int64_t i = 0; i < t.bytes(); ++i) p[i] = uint8_t(rng.bits());  // NaNs and all
    tensors[std::string("x.") + name_of(d)] = t;
  }
  tensors["scalar"] = Tensor::of({2.5}, {});
  tensors["empty"] = zeros({0, 4});
  tensors["a strange \"name\" \n \xc3\xa9"] = ones({1}, DType::u8);
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"note", "h\xc3\xa9 \"there\""}};
  save_safetensors(path, tensors, metadata);
  CHECK(dir.files() == 1);

  const SafeTensors file(path);
  CHECK(file.path() == path);
  CHECK(file.metadata() == metadata);
  REQUIRE(file.tensors().size() == tensors.size());
  for (const auto& [name, t] : tensors) {
    CAPTURE(name);
    REQUIRE(file.contains(name));
    CHECK(same_bytes(file.get(name), t));
  }
  CHECK_FALSE(file.contains("y"));
  CHECK_THROWS_WITH_AS(file.get("y"), doctest::Contains("y"), Error);
  CHECK_THROWS_WITH_AS(file.get("y"), doctest::Contains("all.safetensors"), Error);
}

TEST_CASE("the file is laid out as the format says") {
  const Folder dir;
  const std::string path = dir / "layout.safetensors";
  save_safetensors(path,
                   {{"b", Tensor::of({1, 2}, {2}, DType::u8)}, {"a", Tensor::of({1}, {1}, DType::f32)}});
  const std::string bytes = bytes_of_file(path);
  uint64_t n = 0;
  std::memcpy(&n, bytes.data(), 8);
  CHECK(n % 8 == 0);
  REQUIRE(bytes.size() == 8 + n + 6);
  CHECK(bytes[8] == '{');
  CHECK(bytes.substr(8 + n) == std::string("\x00\x00\x80\x3f\x01\x02", 6));
}

TEST_CASE("views are written in their own order, gradients are left out") {
  const Folder dir;
  const std::string path = dir / "views.safetensors";
  Tensor t = arange(12, DType::f32).reshape({3, 4});
  t.set_requires_grad();
  save_safetensors(path, {{"t", t.transpose(0, 1)}, {"s", t.slice(1, 1, 4, 2)}});
  const SafeTensors file(path);
  CHECK(file.get("t").to_vector() == std::vector<double>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11});
  CHECK(file.get("s").to_vector() == std::vector<double>{1, 3, 5, 7, 9, 11});
  CHECK_FALSE(file.get("t").requires_grad());
}

TEST_CASE("tensors keep the mapping alive, and writing to one leaves the file alone") {
  const Folder dir;
  const std::string path = dir / "map.safetensors";
  save_safetensors(path, {{"x", full({1000}, 3)}});
  const std::string before = bytes_of_file(path);
  Tensor x;
  {
    const SafeTensors file(path);
    x = file.get("x");
  }
  CHECK(x.to_vector() == std::vector<double>(1000, 3.0));
  x.fill(4);
  CHECK(bytes_of_file(path) == before);
  CHECK(SafeTensors(path).get("x").to_vector()[999] == 3);
  // Saving over the file that a tensor is mapped from.
  save_safetensors(path, {{"y", x}});
  CHECK(SafeTensors(path).get("y").to_vector() == std::vector<double>(1000, 4.0));
  CHECK(x.to_vector()[0] == 4);
}

TEST_CASE("data at odd offsets is read all the same") {
  // The header's length puts the data at byte 8 + n, which need not be a multiple of the element size.
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}})";
  const Folder dir;
  const std::string path = dir / "odd.safetensors";
  const float values[2] = {1.5f, -2};
  for (size_t pad = 0; pad < 4; ++pad) {
    put(path, file_of(header + std::string(pad, ' '), 3) +
                  std::string(reinterpret_cast<const char*>(values), sizeof values));
    CHECK(SafeTensors(path).get("b").to_vector() == std::vector<double>{1.5, -2});
  }
}

TEST_CASE("lengths that lie are refused") {
  const std::string good = file_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  REQUIRE(refusal(good) == "");
  CHECK(refused("", {"0 bytes"}));
  CHECK(refused("short", {"5 bytes"}));
  CHECK(refused(with_length(0, ""), {"JSON"}));
  CHECK(refused(with_length(0, "{}"), {"JSON"}));
  CHECK(refused(with_length(100, "{}"), {"100", "10 bytes"}));
  CHECK(refused(with_length(3, "{}"), {"length 3"}));
  CHECK(refused(with_length(UINT64_MAX, "{}"), {"18446744073709551615"}));
  CHECK(refused(with_length(UINT64_MAX - 7, "{}"), {"header length"}));
  CHECK(refused(with_length(uint64_t(1) << 63, "{}"), {"header length"}));
  for (size_t n = 0; n < good.size(); ++n) CHECK(refusal(good.substr(0, n)) != "");
  CHECK(refused(good + "x", {"1 bytes after the last tensor"}));
}

TEST_CASE("headers that are not what they should be are refused") {
  CHECK(refused(file_of("not json", 0), {"JSON"}));
  CHECK(refused(file_of("{\"x\":", 0), {"JSON"}));
  CHECK(refused(file_of("[]", 0), {"object"}));
  CHECK(refused(file_of("3", 0), {"object"}));
  CHECK(refused(file_of("{\"\xff\":{}}", 0), {"JSON"}));
  CHECK(refused(file_of(std::string(100000, '['), 0), {"header"}));
  CHECK(refused(file_of(R"({"x":)" + std::string(50, '[') + std::string(50, ']') + "}", 0), {"nested"}));
  CHECK(refused(file_of(R"({"x":3})", 0), {"tensor x"}));
  CHECK(refused(file_of(R"({"x":{}})", 0), {"tensor x", "dtype"}));
  CHECK(refused(file_of(R"({"x":{"dtype":"U8","shape":[1]}})", 1), {"tensor x", "data_offsets"}));
  CHECK(refused(file_of(R"({"x":{"dtype":"U8","data_offsets":[0,1]}})", 1), {"tensor x", "shape"}));
  CHECK(refused(file_of(R"({"__metadata__":3})", 0), {"__metadata__"}));
  CHECK(refused(file_of(R"({"__metadata__":{"a":3}})", 0), {"metadata a"}));
  CHECK(refused(file_of(R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                        2),
                {"\"x\"", "twice"}));
  CHECK(refused(file_of(R"({"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}})", 0), {"twice"}));
}

TEST_CASE("shapes and dtypes that lie are refused") {
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                        size_t data) {
    return file_of(
        "{\"x\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}", data);
  };
  REQUIRE(refusal(entry("\"F16\"", "[2,2]", "[0,8]", 8)) == "");
  REQUIRE(refusal(entry("\"F16\"", "[]", "[0,2]", 2)) == "");
  REQUIRE(refusal(entry("\"F16\"", "[0,7]", "[0,0]", 0)) == "");
  CHECK(refused(entry("\"Q7\"", "[2]", "[0,2]", 2), {"tensor x", "Q7"}));
  CHECK(refused(entry("\"f32\"", "[2]", "[0,8]", 8), {"f32"}));
  CHECK(refused(entry("7", "[2]", "[0,2]", 2), {"tensor x"}));
  CHECK(refused(entry("\"U8\"", "[-2]", "[0,2]", 2), {"tensor x", "-2"}));
  CHECK(refused(entry("\"U8\"", "[-1,-2]", "[0,2]", 2), {"tensor x", "-1"}));
  CHECK(refused(entry("\"U8\"", "[2.0]", "[0,2]", 2), {"tensor x", "2.0"}));
  CHECK(refused(entry("\"U8\"", "[\"2\"]", "[0,2]", 2), {"tensor x"}));
  CHECK(refused(entry("\"U8\"", "2", "[0,2]", 2), {"tensor x"}));
  CHECK(refused(entry("\"U8\"", "[1,1,1,1,1,1,1,1,2]", "[0,2]", 2), {"tensor x"}));
  CHECK(refused(entry("\"U8\"", "[3]", "[0,2]", 2), {"tensor x", "[3]", "3 bytes", "gives 2"}));
  CHECK(refused(entry("\"F64\"", "[1]", "[0,2]", 2), {"F64", "8 bytes"}));
  CHECK(refused(entry("\"F4\"", "[3]", "[0,1]", 1), {"odd"}));
  // Products that wrap around to the right number of bytes, or to none.
  CHECK(refused(entry("\"F32\"", "[4611686018427387904,4]", "[0,0]", 0), {"overflows"}));
  CHECK(refused(entry("\"U8\"", "[4294967296,4294967296]", "[0,0]", 0), {"overflows"}));
  CHECK(refused(entry("\"U8\"", "[4294967297,4294967297]", "[0,8]", 8), {"overflows"}));
  CHECK(refused(entry("\"U8\"", "[0,4294967296,4294967296]", "[0,0]", 0), {"overflows"}));
  CHECK(refused(entry("\"U8\"", "[9223372036854775808]", "[0,1]", 1), {"overflows"}));
  CHECK(refused(entry("\"U8\"", "[18446744073709551615]", "[0,1]", 1), {"overflows"}));
  CHECK(refused(entry("\"U8\"", "[99999999999999999999999]", "[0,1]", 1), {"tensor x"}));
}

TEST_CASE("offsets that lie are refused") {
  const auto offsets = [](const std::string& o, size_t data) {
    return file_of("{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":" + o + "}}", data);
  };
  REQUIRE(refusal(offsets("[0,2]", 2)) == "");
  CHECK(refused(offsets("[0,2]", 1), {"outside"}));
  CHECK(refused(offsets("[2,0]", 2), {"tensor x"}));
  CHECK(refused(offsets("[-2,0]", 2), {"data_offsets"}));
  CHECK(refused(offsets("[18446744073709551614,18446744073709551616]", 2), {"data_offsets"}));
  CHECK(refused(offsets("[18446744073709551613,18446744073709551615]", 2), {"outside"}));
  CHECK(refused(offsets("[0]", 2), {"data_offsets"}));
  CHECK(refused(offsets("[0,1,2]", 2), {"data_offsets"}));
  CHECK(refused(offsets("[0,2.5]", 2), {"data_offsets"}));
  CHECK(refused(offsets("{}", 2), {"data_offsets"}));
  CHECK(refused(offsets("[1,3]", 3), {"gap"}));
  const auto two = [](const std::string& a, const std::string& b, size_t data) {
    return file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":" + a +
                       "},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":" + b + "}}",
                   data);
  };
  REQUIRE(refusal(two("[2,4]", "[0,2]", 4)) == "");
  CHECK(refused(two("[0,2]", "[1,3]", 3), {"overlap"}));
  CHECK(refused(two("[0,2]", "[0,2]", 2), {"overlap"}));
  CHECK(refused(two("[0,2]", "[3,5]", 5), {"gap"}));
}

TEST_CASE("paths that are no files are refused with the reason") {
  const Folder dir;
  CHECK_THROWS_WITH_AS(SafeTensors(dir / "absent"), doctest::Contains("No such file"), Error);
  CHECK_THROWS_WITH_AS(SafeTensors(dir.path.string()), doctest::Contains("regular file"), Error);
  CHECK_THROWS_WITH_AS(read_file(dir / "absent"), doctest::Contains("absent"), Error);
  CHECK_THROWS_WITH_AS(save_safetensors(dir / "no/such/folder", {}), doctest::Contains("no/such/folder"),
                       Error);
  CHECK(dir.files() == 0);
}

TEST_CASE("whole files are written and read back") {
  const Folder dir;
  const std::string path = dir / "f.json", text("a\0b\n", 4);
  write_file(path, text);
  CHECK(read_file(path) == text);
  write_file(path, "");
  CHECK(read_file(path) == "");
  write_file(path, std::string(200000, 'z'));
  CHECK(read_file(path) == std::string(200000, 'z'));
  CHECK(dir.files() == 1);
}

TEST_CASE("a failed write leaves the old file whole and nothing beside it") {
  const Folder dir;
  const std::string path = dir / "model.safetensors";
  save_safetensors(path, {{"x", full({4}, 1)}});
  const std::string before = bytes_of_file(path);

  SUBCASE("the disk runs out: a limit on the file size") {
    rlimit old{};
    ::getrlimit(RLIMIT_FSIZE, &old);
    const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{65536, old.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &small);
    CHECK_THROWS_WITH_AS(save_safetensors(path, {{"x", full({1 << 20}, 2)}}),
                         doctest::Contains("model.safetensors"), Error);
    CHECK_THROWS_AS(write_file(path, std::string(1 << 20, 'x')), Error);
    ::setrlimit(RLIMIT_FSIZE, &old);
    ::signal(SIGXFSZ, old_handler);
  }
  SUBCASE("a tensor cannot be stored") {
    CHECK_THROWS_WITH_AS(
        save_safetensors(path, {{"a", full({4}, 2)}, {"m", Tensor({2}, DType::f32, Device::meta)}}),
        doctest::Contains("m"), Error);
    CHECK_THROWS_WITH_AS(save_safetensors(path, {{"nothing", Tensor()}}), doctest::Contains("nothing"),
                         Error);
    CHECK_THROWS_WITH_AS(save_safetensors(path, {{"__metadata__", ones({1})}}),
                         doctest::Contains("__metadata__"), Error);
    CHECK_THROWS_AS(save_safetensors(path, {{"\xff not UTF-8", ones({1})}}), Error);
  }
  SUBCASE("the target is a folder") {
    fs::create_directory(dir / "folder");
    put(dir / "folder/inside", "x");
    CHECK_THROWS_AS(write_file(dir / "folder", "text"), Error);
    CHECK(bytes_of_file(dir / "folder/inside") == "x");
    fs::remove_all(dir / "folder");
  }
  CHECK(bytes_of_file(path) == before);
  CHECK(dir.files() == 1);
}
