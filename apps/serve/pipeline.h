// The editing of one session: three threads around the editor, each one chunk ahead of the next.
//
//   prepare   JPEG to pixels, pixels to latents                   chunk n + 1
//   denoise   the network, the only stage that needs the chunk before    n
//   finish    latents to pixels, safeguards, pixels to JPEG       chunk n - 1
//
// prepare begins only shortly before denoise will be free: frames that wait any longer would be older than
// they need be. A fourth thread screens and encodes instructions, so that a slow classifier holds up no
// frame. Settings are read when a chunk begins and go with it: they change between chunks and never inside
// one.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "apps/safeguards/guard.h"
#include "apps/serve/events.h"
#include "apps/serve/frame_queue.h"
#include "apps/serve/handoff.h"
#include "apps/serve/jpeg.h"
#include "models/editor.h"

namespace rivulet::serve {

struct PipelineOptions {
  const Editor* editor;  // both outlive the pipeline
  const Safeguards* safeguards;
  FrameSize size;    // what is edited; turned for a portrait source
  std::string name;  // of the session, for the audit log
  int threads = 0;   // CPU threads of a stage; 0 for all cores
};

// Seconds of the steady clock, which every time in here is measured by.
double steady_seconds();

class Pipeline {
 public:
  // `emit` is called from the pipeline's threads; it must not wait for the pipeline.
  Pipeline(const PipelineOptions& options, std::function<void(Event)> emit);
  // Waits for the chunk in progress.
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  void frame(SourceFrame frame);
  // The newest instruction wins when they come faster than they can be screened.
  void instruct(const Instruct& instruction);
  void apply(const Settings& settings);
  void protect(std::vector<Region> regions);
  void reset();
  // Tells the threads to end; the destructor waits for them.
  void stop();

 private:
  // What a chunk is edited by.
  struct Orders {
    std::shared_ptr<const Prompt> prompt;
    double strength = 1;
    uint64_t seed = 0;
    SampleOptions sampling;
    std::vector<Region> regions;
    bool fresh = true;  // forget the stream before this chunk
  };
  struct Chunk;

  void run(void (Pipeline::*stage)());
  void screen();
  void prepare();
  void denoise();
  void finish();
  int64_t next_frames(double ahead);
  bool read_frames(Chunk& chunk, JpegCodec& codec);
  void denoise(Chunk& chunk, EditState& state) const;
  Tensor settle(const Chunk& chunk, VideoState& decoder) const;
  void send(Chunk& chunk, const GuardedFrames& guarded, JpegCodec& codec);
  void report(const GuardedFrames& guarded);
  void start_over();

  const PipelineOptions options_;
  const std::function<void(Event)> emit_;
  FrameQueue frames_;
  Handoff<std::shared_ptr<Chunk>> prepared_, denoised_;
  std::mutex mutex_;  // of what follows, up to stopped_
  std::condition_variable changed_;
  Orders orders_;
  std::optional<Instruct> instruction_;  // not screened yet
  double needed_at_ = 0;                 // when denoise() will want a chunk, as far as one can tell
  int64_t prepared_chunks_ = 0, taken_chunks_ = 0;  // by prepare(), and out of its hands by denoise()
  bool stopped_ = false;
  FrameSize size_;             // of prepare(): what the stream is edited at
  bool falling_back_ = false;  // of finish()
  int64_t chunks_ = 0;         // of finish()
  std::vector<std::thread> threads_;
};

}  // namespace rivulet::serve
