#include "apps/serve/protocol.h"

#include <cmath>
#include <cstring>

#include "tensor/error.h"

namespace rivulet::serve {
namespace {

using Json = nlohmann::json;

// Objects of these messages nest at most twice; a deeper text is refused before it is built.
constexpr int kMaxDepth = 4;

Json parse_json(std::string_view text) {
  check(int64_t(text.size()) <= kMaxTextBytes, "message: ", text.size(), " bytes of text, at most ",
        kMaxTextBytes, " are read");
  bool deep = false;
  const auto shallow = [&deep](int depth, Json::parse_event_t, Json&) {
    deep = deep || depth > kMaxDepth;
    return !deep;
  };
  Json json = Json::parse(text, shallow, false);
  check(!deep && json.is_object(), "message: not a JSON object");
  return json;
}

// The fields of one message, each taken once; what is left over at the end is refused.
class Fields {
 public:
  Fields(const Json& json, const std::string& type) : json_(json), type_(type) {}

  const Json* find(const char* key) {
    const auto it = json_.find(key);
    if (it == json_.end()) return nullptr;
    ++taken_;
    return &*it;
  }
  const Json& need(const char* key) {
    const Json* value = find(key);
    check(value != nullptr, type_, ": '", key, "' is missing");
    return *value;
  }
  std::string text(const char* key, const Json& value, int64_t limit) const {
    check(value.is_string(), type_, ": '", key, "' is not text");
    const auto& s = value.get_ref<const std::string&>();
    check(int64_t(s.size()) <= limit, type_, ": '", key, "' has ", s.size(), " bytes, at most ", limit,
          " are read");
    for (unsigned char c : s) check(c >= 0x20 && c != 0x7f, type_, ": '", key, "' holds a control character");
    return s;
  }
  double number(const char* key, const Json& value, double low, double high) const {
    const double x = value.is_number() ? value.get<double>() : std::nan("");
    check(x >= low && x <= high, type_, ": '", key, "' is not a number from ", low, " to ", high);
    return x;
  }
  int64_t integer(const char* key, const Json& value, double low, double high) const {
    const double x = number(key, value, low, high);
    check(x == std::floor(x), type_, ": '", key, "' is not a whole number");
    return int64_t(x);
  }
  bool flag(const char* key, const Json& value) const {
    check(value.is_boolean(), type_, ": '", key, "' is neither true nor false");
    return value.get<bool>();
  }
  void done() const { check(taken_ == json_.size(), type_, ": holds a field it does not have"); }

 private:
  const Json& json_;
  std::string type_;
  size_t taken_ = 0;
};

Hello read_hello(Fields& f) {
  const int64_t version = f.integer("version", f.need("version"), 0, 1000);
  check(version == kProtocolVersion, "hello: speaks version ", version, ", the server ", kProtocolVersion);
  const std::string role = f.text("role", f.need("role"), 16);
  check(role == "edit" || role == "watch", "hello: the role is 'edit' or 'watch'");
  Hello h{role == "edit" ? Role::editor : Role::viewer, {}};
  if (const Json* token = f.find("token")) h.token = f.text("token", *token, kMaxTokenBytes);
  return h;
}

Instruct read_instruct(Fields& f) {
  Instruct i{f.text("text", f.need("text"), kMaxInstructionBytes), true};
  if (const Json* keep = f.find("keep_memory")) i.keep_memory = f.flag("keep_memory", *keep);
  return i;
}

Settings read_settings(Fields& f) {
  Settings s;
  if (const Json* v = f.find("strength")) s.strength = f.number("strength", *v, 0, 1);
  if (const Json* v = f.find("seed")) s.seed = uint64_t(f.integer("seed", *v, 0, 9007199254740991.0));
  if (const Json* v = f.find("steps")) s.steps = f.integer("steps", *v, 1, double(kMaxSteps));
  return s;
}

Protect read_protect(Fields& f) {
  const Json& regions = f.need("regions");
  check(regions.is_array() && int64_t(regions.size()) <= kMaxProtectedRegions,
        "protect: 'regions' is a list of at most ", kMaxProtectedRegions);
  Protect p;
  for (const Json& r : regions) {
    check(r.is_array() && r.size() == 4, "protect: a region is [x, y, width, height]");
    std::array<double, 4> side{};
    for (size_t i = 0; i < 4; ++i) side[i] = f.number("regions", r[i], 0, 1);
    p.regions.push_back({side[0], side[1], side[2], side[3]});
  }
  return p;
}

Shown read_shown(Fields& f) {
  const Json& list = f.need("latency_ms");
  check(list.is_array() && int64_t(list.size()) <= kMaxLatencies, "shown: 'latency_ms' is a list of at most ",
        kMaxLatencies);
  Shown s;
  for (const Json& v : list) s.latency_ms.push_back(f.number("latency_ms", v, 0, 600000));
  if (const Json* v = f.find("skipped")) s.skipped = f.integer("skipped", *v, 0, 1e6);
  return s;
}

template <class T>
T little_endian(std::string_view bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= T(T(uint8_t(bytes[at + i])) << (8 * i));
  return value;
}

template <class T>
void put_little_endian(std::string& bytes, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) bytes.push_back(char(uint8_t(value >> (8 * i))));
}

}  // namespace

ClientMessage parse_text(std::string_view text) {
  const Json json = parse_json(text);
  const auto it = json.find("type");
  check(it != json.end() && it->is_string(), "message: has no type");
  const std::string type = it->get<std::string>();
  Fields f(json, type);
  f.find("type");
  const auto whole = [&f](auto message) -> ClientMessage {
    f.done();
    return message;
  };
  if (type == "hello") return whole(read_hello(f));
  if (type == "instruct") return whole(read_instruct(f));
  if (type == "settings") return whole(read_settings(f));
  if (type == "protect") return whole(read_protect(f));
  if (type == "reset") return whole(Reset{});
  if (type == "shown") return whole(read_shown(f));
  fail("message: of a type that the server does not know");
}

Picture parse_picture(std::string_view message) {
  check(message.size() > kPictureHeader, "picture: ", message.size(), " bytes hold no picture");
  check(int64_t(message.size()) <= kMaxMessageBytes, "picture: ", message.size(), " bytes, at most ",
        kMaxMessageBytes, " are read");
  const uint8_t kind = uint8_t(message[0]);
  check(kind >= 1 && kind <= 3, "picture: of a kind that does not exist, ", int(kind));
  check(message[2] == 0 && message[3] == 0, "picture: the header is damaged");
  Picture p;
  p.header = {PictureKind(kind), uint8_t(message[1]), little_endian<uint32_t>(message, 4),
              little_endian<uint64_t>(message, 8)};
  p.jpeg = message.substr(kPictureHeader);
  return p;
}

Picture parse_frame(std::string_view message) {
  const Picture p = parse_picture(message);
  check(p.header.kind == PictureKind::frame && p.header.flags == 0,
        "picture: a client sends frames (kind 1, no flags)");
  return p;
}

std::string picture_message(const PictureHeader& h, std::string_view jpeg) {
  std::string m;
  m.reserve(kPictureHeader + jpeg.size());
  m.push_back(char(h.kind));
  m.push_back(char(h.flags));
  put_little_endian<uint16_t>(m, 0);
  put_little_endian<uint32_t>(m, h.sequence);
  put_little_endian<uint64_t>(m, h.captured_us);
  m.append(jpeg);
  return m;
}

std::string notice_message(const std::string& code, const std::string& text) {
  return Json{{"type", "notice"}, {"code", code}, {"text", text}}.dump();
}

std::string refused_message(const std::string& about, const std::string& code, const std::string& text) {
  return Json{{"type", "refused"}, {"about", about}, {"code", code}, {"text", text}}.dump();
}

}  // namespace rivulet::serve
