// `rivulet edit` on what it cannot work with: one sentence on stderr that names the thing, exit code 2, and
// nothing under the final name.
#include <sys/mount.h>

#include "apps/video.h"
#include "nn/config.h"
#include "ops/image_io.h"
#include "tests/edit_fixtures.h"

using namespace rivulet;
namespace fs = std::filesystem;

namespace {

// A folder with a good clip and a good model to spoil one thing of.
struct Scene {
  TempDir dir;
  std::string clip = dir / "clip.y4m", model = dir / "model", out = dir / "out.y4m";

  Scene() {
    save_small_model(model);
    write_clip(clip, 6, 16, 24);
  }
  static void write_clip(const std::string& path, int64_t frames, int64_t height, int64_t width) {
    const auto sink =
        open_sink(path, {.size = {width, height}, .fps = {}, .frames = -1, .audio = {}, .audio_offset = 0});
    sink->write(moving_picture(frames, height, width));
    sink->finish();
  }

  Outcome edit(const std::string& in, const std::string& prompt = "make it night",
               std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {in, "-p", prompt, "-o", out, "--model", model};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return rivulet_edit(arguments);
  }
  // Checks the refusal and that it says every one of `parts`.
  void refuses(const Outcome& o, const std::vector<std::string>& parts) const {
    // Progress may have been shown before: the refusal is the last line.
    std::string sentence = o.err.substr(0, o.err.find_last_not_of('\n') + 1);
    const size_t line = sentence.rfind("rivulet: ");
    CAPTURE(o.err);
    REQUIRE(line != sentence.npos);
    sentence = sentence.substr(line);
    CHECK(o.code == 2);
    // A sentence may end in an indented list of what does not fit.
    for (size_t at = sentence.find('\n'); at != sentence.npos; at = sentence.find('\n', at + 1))
      CHECK(sentence.substr(at + 1, 2) == "  ");
    for (const std::string& part : parts) {
      CAPTURE(part);
      CHECK(sentence.find(part) != sentence.npos);
    }
    CHECK_FALSE(fs::exists(out));
  }
};

}  // namespace

TEST_CASE("the scene itself is good") {
  Scene s;
  const Outcome o = s.edit(s.clip);
  CAPTURE(o.err);
  CHECK(o.code == 0);
  CHECK(fs::exists(s.out));
}

TEST_CASE("inputs that are not there or hold nothing") {
  Scene s;
  s.refuses(s.edit(s.dir / "none.mp4"), {"none.mp4", "no such file"});
  s.refuses(s.edit(""), {"no input"});
  write_file(s.dir / "empty.mp4", "");
  s.refuses(s.edit(s.dir / "empty.mp4"), {"empty.mp4", "empty"});
  fs::create_directory(s.dir / "folder");
  s.refuses(s.edit(s.dir / "folder"), {"folder", "no images"});
  write_file(s.dir / "zero.y4m", "YUV4MPEG2 W24 H16 F25:1 C444\n");
  s.refuses(s.edit(s.dir / "zero.y4m"), {"zero.y4m", "no frames"});
  CHECK_FALSE(fs::exists(s.dir / "out.partial.y4m"));
}

TEST_CASE("files that ffmpeg cannot make sense of") {
  NEEDS_FFMPEG();
  Scene s;
  write_file(s.dir / "text.mp4", "This is a letter, not a video.\n");
  s.refuses(s.edit(s.dir / "text.mp4"), {"text.mp4", "not a video"});
  ffmpeg({"-f", "lavfi", "-i", "sine=duration=1", s.dir / "sound.mp4"});
  s.refuses(s.edit(s.dir / "sound.mp4"), {"sound.mp4", "no video"});
  // A video stream of no frames at all.
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=64x48:duration=1", "-vf", "select=0", "-pix_fmt", "yuv420p",
          s.dir / "zero.mp4"});
  s.refuses(s.edit(s.dir / "zero.mp4"), {"zero.mp4"});
  CHECK_FALSE(fs::exists(s.dir / "out.partial.y4m"));
}

TEST_CASE("truncated videos, wherever their index is") {
  NEEDS_FFMPEG();
  Scene s;
  const std::vector<std::string> clip = {
      "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=4", "-pix_fmt", "yuv420p", "-g", "10"};
  const auto cut = [&](const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> arguments = clip;
    more.push_back(s.dir / name);
    arguments.insert(arguments.end(), more.begin(), more.end());
    ffmpeg(arguments);
    const std::string bytes = read_file(s.dir / name);
    write_file(s.dir / name, bytes.substr(0, bytes.size() / 2));
    return s.edit(s.dir / name);
  };
  s.refuses(cut("index_last.mp4", {}), {"index_last.mp4", "moov atom not found"});
  s.refuses(cut("index_first.mp4", {"-movflags", "+faststart"}), {"index_first.mp4", "out.partial.y4m"});
  s.refuses(cut("cut.mkv", {}), {"cut.mkv", "out.partial.y4m"});
  const std::string bytes = read_file(s.clip);
  write_file(s.dir / "cut.y4m", bytes.substr(0, bytes.size() - 100));
  s.refuses(s.edit(s.dir / "cut.y4m"), {"cut.y4m", "middle of frame 6", "out.partial.y4m"});
  CHECK(open_source(s.dir / "out.partial.y4m")->read(3).dim(0) == 3);  // the chunk that was whole
}

TEST_CASE("sizes: one pixel is refused; odd, portrait and variable-rate clips are edited") {
  NEEDS_FFMPEG();
  Scene s;
  Scene::write_clip(s.dir / "dot.y4m", 3, 1, 1);
  s.refuses(s.edit(s.dir / "dot.y4m"), {"dot.y4m", "1x1"});
  s.refuses(s.edit(s.clip, "night", {"--size", "0x5"}), {"0x5"});
  s.refuses(s.edit(s.clip, "night", {"--size", "large"}), {"large"});

  const auto edited_size = [&](const std::string& in, std::vector<std::string> more = {}) {
    s.out = s.dir / "ok.mp4";
    const Outcome o = s.edit(in, "night", more);
    CAPTURE(o.err);
    CHECK(o.code == 0);
    return open_source(s.out)->info().size;
  };
  Scene::write_clip(s.dir / "odd.y4m", 3, 35, 63);
  CHECK(edited_size(s.dir / "odd.y4m") == FrameSize{62, 34});
  Scene::write_clip(s.dir / "portrait.y4m", 3, 64, 36);
  CHECK(edited_size(s.dir / "portrait.y4m") == FrameSize{36, 64});
  CHECK(edited_size(s.dir / "portrait.y4m", {"--size", "64x48"}) == FrameSize{48, 64});
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1", "-vf",
          "select='lt(n,10)+not(mod(n,5))'", "-vsync", "vfr", "-pix_fmt", "yuv420p", s.dir / "vfr.mp4"});
  CHECK(edited_size(s.dir / "vfr.mp4") == FrameSize{64, 48});
}

TEST_CASE("prompts: none, empty, unknown words") {
  Scene s;
  s.refuses(s.edit(s.clip, ""), {"empty"});
  s.refuses(s.edit(s.clip, " ,. "), {"empty"});
  s.refuses(s.edit(s.clip, "make it zebra, quickly"), {"zebra", "quickly"});
  s.refuses(rivulet_edit({s.clip, "-o", s.out, "--model", s.model}), {"--prompt"});
  s.refuses(s.edit(s.clip, "night", {"-p", "make it night"}), {"2 prompts", "1 outputs"});
}

TEST_CASE("command lines that cannot be meant") {
  Scene s;
  s.refuses(rivulet_edit({}), {"in"});
  s.refuses(run_program({RIVULET_BIN}), {"subcommand"});
  s.refuses(run_program({RIVULET_BIN, "fly"}), {});
  s.refuses(s.edit(s.clip, "night", {"--colour", "5"}), {"--colour"});
  s.refuses(s.edit(s.clip, "night", {"--steps", "0"}), {"--steps"});
  s.refuses(s.edit(s.clip, "night", {"--seed", "lucky"}), {"lucky"});
  s.refuses(s.edit(s.clip, "night", {"--compare", "x.txt"}), {"x.txt"});
  s.refuses(s.edit(s.clip, "night", {"--sheet", "x.bmp"}), {"x.bmp"});
  s.refuses(s.edit(s.clip, "night", {"--compare", s.out}), {"out.y4m", "twice"});
  s.out = s.clip;
  const Outcome o = s.edit(s.clip);
  CHECK(o.code == 2);
  CHECK(o.err.find("the input itself") != o.err.npos);
  CHECK(open_source(s.clip)->read(100).dim(0) == 6);
}

TEST_CASE("outputs that cannot be written") {
  Scene s;
  for (const char* name : {"no_folder/out.y4m", "no_folder/out.mp4", "no_folder/frames/", "out.xyz"}) {
    s.out = s.dir / name;
    s.refuses(s.edit(s.clip), {name == std::string("no_folder/frames/") ? "no_folder/frames" : name});
  }
  s.out = "/proc/out.y4m";
  s.refuses(s.edit(s.clip), {"/proc/out.y4m", "cannot be written"});
  s.out = s.dir / "out.y4m";
  s.refuses(s.edit(s.clip, "night", {"--sheet", s.dir / "no_folder/s.png"}), {"no_folder/s.png"});
  s.refuses(s.edit(s.clip, "night", {"--compare", s.dir / "no_folder/c.mp4"}), {"no_folder/c.mp4"});
  CHECK_FALSE(fs::exists(s.dir / "out.partial.y4m"));
  fs::create_directory(s.dir / "taken.y4m");
  const Outcome o = rivulet_edit({s.clip, "-p", "night", "-o", s.dir / "taken.y4m", "--model", s.model});
  CHECK(o.code == 2);
  CHECK(o.err.find("taken.y4m: cannot be written (it is a folder)") != o.err.npos);
}

TEST_CASE("a full disk") {
  NEEDS_FFMPEG();
  Scene s;
  const std::string disk = s.dir / "disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") != 0) {
    MESSAGE("skipped: only root may mount the small disk");
    return;
  }
  // Noise, so that H.264 needs more than the disk has.
  ffmpeg({"-f", "lavfi", "-i", "nullsrc=size=128x96:rate=25:duration=2,geq=lum='random(1)*255':cb=128:cr=128",
          "-pix_fmt", "yuv420p", "-crf", "10", s.dir / "noise.mp4"});
  for (const char* name : {"disk/out.y4m", "disk/out.mp4", "disk/out/"}) {
    CAPTURE(name);
    s.out = s.dir / name;
    s.refuses(s.edit(s.dir / "noise.mp4"), {"disk/out", "No space left on device"});
    for (const auto& entry : fs::directory_iterator(disk)) fs::remove_all(entry.path());
  }
  CHECK(::umount(disk.c_str()) == 0);
}

TEST_CASE("ffmpeg missing") {
  NEEDS_FFMPEG();
  Scene s;
  ffmpeg({"-i", s.clip, "-pix_fmt", "yuv420p", s.dir / "in.mp4"});
  const auto without = [&](const std::string& in) {
    return run_program(
        {"env", "PATH=/nowhere", RIVULET_BIN, "edit", in, "-p", "night", "-o", s.out, "--model", s.model});
  };
  s.refuses(without(s.dir / "in.mp4"), {"ffmpeg", "not installed"});
  s.out = s.dir / "out.mp4";
  s.refuses(without(s.clip), {"ffmpeg", "not installed"});
  CHECK_FALSE(fs::exists(s.dir / "out.partial.mp4"));
}

TEST_CASE("models that are damaged") {
  Scene s;
  const std::string weights = s.model + "/weights.safetensors", config = s.model + "/config.json";
  const std::string good = read_file(weights), good_config = read_file(config);
  const auto spoiled = [&](const std::string& bytes) {
    write_file(weights, bytes);
    return s.edit(s.clip);
  };
  s.refuses(spoiled(good.substr(0, good.size() - 10)), {"weights.safetensors"});
  s.refuses(spoiled(good.substr(0, 5)), {"weights.safetensors"});
  s.refuses(spoiled(""), {"weights.safetensors"});
  std::string oversized = good;
  oversized[5] = 1;  // a header of a terabyte
  s.refuses(spoiled(oversized), {"weights.safetensors", "header"});
  std::string corrupt = good;
  corrupt[8] = '[';
  s.refuses(spoiled(corrupt), {"weights.safetensors"});

  std::map<std::string, Tensor> tensors;
  write_file(weights, good);
  const SafeTensors file(weights);
  for (const auto& [name, t] : file.tensors()) tensors[name] = t.clone();
  const std::string victim = tensors.begin()->first;
  tensors[victim] = zeros({3, 5}, DType::f32);
  save_safetensors(weights, tensors);
  s.refuses(s.edit(s.clip), {"weights.safetensors", victim, "[3, 5]"});
  tensors.erase(victim);
  save_safetensors(weights, tensors);
  s.refuses(s.edit(s.clip), {"weights.safetensors", victim});
  fs::remove(weights);
  s.refuses(s.edit(s.clip), {"weights.safetensors"});
  write_file(weights, good);

  const auto configured = [&](const std::function<void(Json&)>& change) {
    Json json = Json::parse(good_config);
    change(json);
    write_file(config, json.dump());
    return s.edit(s.clip);
  };
  s.refuses(configured([](Json& j) { j["flavour"] = "sweet"; }), {"config.json", "flavour"});
  s.refuses(configured([](Json& j) { j["dit"]["flavour"] = 1; }), {"config.json", "flavour"});
  s.refuses(configured([](Json& j) { j["dit"]["width"] = -4; }), {"config.json", "width"});
  s.refuses(configured([](Json& j) { j["dit"]["width"] = "wide"; }), {"config.json", "width"});
  write_file(config, good_config.substr(0, good_config.size() / 2));
  s.refuses(s.edit(s.clip), {"config.json"});
  fs::remove(config);
  s.refuses(s.edit(s.clip), {"config.json"});
  s.model = s.dir / "nowhere";
  s.refuses(s.edit(s.clip), {"nowhere"});
}

TEST_CASE("states that do not belong to this stream") {
  Scene s;
  write_file(s.dir / "junk", "junk");
  s.refuses(s.edit(s.clip, "night", {"--state", s.dir / "junk"}), {"junk"});
  s.refuses(s.edit(s.clip, "night", {"--state", s.model + "/weights.safetensors"}),
            {"weights.safetensors", "not an edit state"});
  const std::string state = s.dir / "state", out = s.out;
  s.out = s.dir / "good.y4m";
  CHECK(s.edit(s.clip, "night", {"--state", state}).code == 0);
  s.out = out;
  Scene::write_clip(s.dir / "other.y4m", 3, 32, 32);
  s.refuses(s.edit(s.dir / "other.y4m", "night", {"--state", state}), {"state"});
  s.refuses(s.edit(s.clip, "night", {"--state", state, "-p", "it", "-o", s.dir / "b.y4m"}), {"--state"});
}
