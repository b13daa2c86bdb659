// The whole road of `rivulet edit`: decoding, five network passes a chunk, encoding, files.
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "apps/edit_stream.h"
#include "bench/network.h"
#include "bench/row.h"

namespace rivulet::bench {
namespace {

constexpr int64_t kFrames = 30;
const char* const kClip = RIVULET_SOURCE_DIR "/apps/demo/city.mp4";

class FirstFrames : public FrameSource {
 public:
  FirstFrames(std::unique_ptr<FrameSource> source, int64_t frames)
      : source_(std::move(source)), left_(frames) {
    name_ = source_->name();
    info_ = source_->info();
    info_.frames = frames;
  }

 protected:
  bool next(uint8_t* rgb) override {
    if (left_-- <= 0) return false;
    const Tensor frame = source_->read(1);
    if (frame.defined()) std::memcpy(rgb, frame.raw(), size_t(frame.bytes()));
    return frame.defined();
  }

 private:
  std::unique_ptr<FrameSource> source_;
  int64_t left_;
};

// Frames edited; the file is gone afterwards.
int64_t edit_video(const Editor& editor) {
  const std::string out =
      (std::filesystem::temp_directory_path() / ("rivulet_bench_" + std::to_string(getpid()) + ".mp4"))
          .string();
  FirstFrames source(open_source(kClip, {.size = {256, 144}, .image_rate = {}}), kFrames);
  const auto sink = open_sink(out, source.info());
  const Prompt prompt = editor.encode("make it night");
  EditState state;
  EditStream stream;
  stream.source = &source;
  stream.inner = stream.outer = source.info().size;
  stream.chunk_frames = [&] { return editor.next_chunk_frames(state); };
  stream.tracks.push_back(
      {"edit", [&](const Tensor& f) { return editor.step(f, prompt, state); }, sink.get()});
  const int64_t frames = rivulet::run(stream);
  sink->finish();
  std::filesystem::remove(out);
  return frames;
}

}  // namespace

Row video_row() {
  const auto editor = std::make_shared<const Editor>(brook());
  Row row;
  row.name = "brook_edit_video [30, 144, 256, 3]";
  row.op = "brook_edit_video";
  row.shapes = {{kFrames, 144, 256, 3}};
  row.run = [editor] { edit_video(*editor); };
  row.frames = double(kFrames);
  row.red = [editor]() -> std::string {
    const int64_t frames = edit_video(*editor);
    return frames == kFrames ? "" : "the file got " + std::to_string(frames) + " frames";
  };
  return row;
}

}  // namespace rivulet::bench
