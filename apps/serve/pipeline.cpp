#include "apps/serve/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "ops/shape.h"
#include "tensor/parallel.h"

namespace rivulet::serve {
namespace {

// Frames that wait for the editor: what one chunk takes, so that a new chunk can begin at once, and a little.
size_t waiting_frames(const Editor& editor) {
  return size_t(std::max(editor.first_chunk_frames(), editor.chunk_frames())) + 1;
}

// Milliseconds since `last`, which becomes now.
double lap(double& last) {
  const double now = steady_seconds(), ms = 1000 * (now - last);
  last = now;
  return ms;
}

// [begin, end) of a side of n pixels that the fractions cover, rounded outwards.
std::pair<int64_t, int64_t> span(double begin, double length, int64_t n) {
  const auto low = int64_t(begin * double(n)), high = int64_t(std::ceil((begin + length) * double(n)));
  return {std::clamp<int64_t>(low, 0, n), std::clamp<int64_t>(high, 0, n)};
}

void keep_region(const Tensor& source, const Tensor& edit, const Region& r) {
  const auto [top, bottom] = span(r.y, r.height, edit.dim(1));
  const auto [left, right] = span(r.x, r.width, edit.dim(2));
  if (top >= bottom || left >= right) return;
  edit.slice(1, top, bottom)
      .slice(2, left, right)
      .copy_from(source.slice(1, top, bottom).slice(2, left, right));
}

// edit becomes source + strength * (edit - source).
void blend(const Tensor& source, const Tensor& edit, double strength) {
  const int weight = int(std::lround(256 * strength));
  const uint8_t* s = source.data<uint8_t>();
  uint8_t* e = edit.data<uint8_t>();
  for (int64_t i = 0; i < edit.numel(); ++i)
    e[i] = uint8_t((s[i] * (256 - weight) + e[i] * weight + 128) >> 8);
}

}  // namespace

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Pipeline::Chunk {
  Orders orders;
  std::vector<SourceFrame> from;
  Tensor source;   // u8 [F, H, W, 3]
  Tensor latents;  // of the source, then of the edit; undefined when the network failed
  ChunkRow row;
  double prepare_ms = 0, denoise_ms = 0, handed_on = 0;
};

Pipeline::Pipeline(const PipelineOptions& options, std::function<void(Event)> emit)
    : options_(options), emit_(std::move(emit)), frames_(waiting_frames(*options.editor)) {
  for (auto stage : {&Pipeline::screen, &Pipeline::prepare,
                     static_cast<void (Pipeline::*)()>(&Pipeline::denoise), &Pipeline::finish})
    threads_.emplace_back([this, stage] { run(stage); });
}

Pipeline::~Pipeline() {
  stop();
  for (std::thread& t : threads_) t.join();
}

void Pipeline::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  frames_.close();
  prepared_.close();
  denoised_.close();
}

// A thread has nobody above it to catch for it.
void Pipeline::run(void (Pipeline::*stage)()) {
  try {
    if (options_.threads > 0) set_threads(options_.threads);
    (this->*stage)();
  } catch (const std::exception& e) {
    emit_(Notice{"failure", e.what()});
  }
  stop();
}

void Pipeline::frame(SourceFrame frame) { frames_.push(std::move(frame)); }

void Pipeline::instruct(const Instruct& instruction) {
  {
    const std::lock_guard lock(mutex_);
    // An instruction that was to clear the memory still does when a newer one takes its place.
    const bool keep = !instruction_ || instruction_->keep_memory;
    instruction_ = instruction;
    instruction_->keep_memory = instruction_->keep_memory && keep;
  }
  changed_.notify_all();
}

void Pipeline::apply(const Settings& s) {
  const std::lock_guard lock(mutex_);
  if (s.strength) orders_.strength = *s.strength;
  if (s.seed) orders_.seed = *s.seed;
  if (s.steps) orders_.sampling.steps = default_steps(*s.steps);
}

void Pipeline::protect(std::vector<Region> regions) {
  const std::lock_guard lock(mutex_);
  orders_.regions = std::move(regions);
}

void Pipeline::reset() { start_over(); }

void Pipeline::start_over() {
  const std::lock_guard lock(mutex_);
  orders_.fresh = true;
}

void Pipeline::screen() {
  while (true) {
    Instruct next;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopped_ || instruction_; });
      if (stopped_) return;
      next = *std::exchange(instruction_, std::nullopt);
    }
    try {
      options_.safeguards->admit(next.text, options_.name);
      const auto prompt = std::make_shared<const Prompt>(options_.editor->encode(next.text));
      {
        const std::lock_guard lock(mutex_);
        orders_.prompt = prompt;
        orders_.fresh = orders_.fresh || !next.keep_memory;
      }
      changed_.notify_all();
      emit_(Instructed{next.text});
    } catch (const Refused& e) {
      emit_(InstructionRefused{e.rule(), e.what()});
    } catch (const Error& e) {
      emit_(InstructionRefused{"instruction", e.what()});
    }
  }
}

// Frames that the next chunk takes, once there is an instruction and the chunk will be needed in `ahead`
// seconds; 0 when stopped.
int64_t Pipeline::next_frames(double ahead) {
  std::unique_lock lock(mutex_);
  // Until the last chunk is taken nobody knows when the next one is needed.
  changed_.wait(lock, [&] { return stopped_ || (orders_.prompt && taken_chunks_ == prepared_chunks_); });
  const double pause = needed_at_ - ahead - steady_seconds();
  if (pause > 0) changed_.wait_for(lock, std::chrono::duration<double>(pause), [&] { return stopped_; });
  if (stopped_) return 0;
  return orders_.fresh ? options_.editor->first_chunk_frames() : options_.editor->chunk_frames();
}

void Pipeline::prepare() {
  JpegCodec codec;
  VideoState encoder;
  double ahead = 0;
  while (const int64_t n = next_frames(ahead)) {
    auto chunk = std::make_shared<Chunk>();
    chunk->from = frames_.take(size_t(n));
    if (chunk->from.empty()) return;
    {
      const std::lock_guard lock(mutex_);
      chunk->orders = orders_;
      orders_.fresh = false;
    }
    double clock = steady_seconds();
    chunk->row.frames = n;
    chunk->row.wait_ms = 1000 * (clock - chunk->from.front().arrived);
    if (!read_frames(*chunk, codec)) {
      if (chunk->orders.fresh) start_over();
      continue;
    }
    chunk->row.decode_ms = lap(clock);
    if (chunk->orders.fresh) encoder = {};
    chunk->latents = options_.editor->encode_frames(chunk->source, encoder);
    chunk->row.encode_ms = lap(clock);
    chunk->prepare_ms = chunk->row.decode_ms + chunk->row.encode_ms;
    chunk->handed_on = clock;
    ahead = 1.5 * chunk->prepare_ms / 1000 + 0.01;
    {
      const std::lock_guard lock(mutex_);
      ++prepared_chunks_;
    }
    if (!prepared_.give(std::move(chunk))) return;
  }
}

// False when the chunk is to be left out: a frame is damaged, or a stream of another size begins with it.
bool Pipeline::read_frames(Chunk& chunk, JpegCodec& codec) {
  Tensors frames;
  try {
    const FrameSize first = jpeg_size(chunk.from.front().jpeg());
    const FrameSize size = nearest_multiple(orient(options_.size, first), options_.editor->size_multiple());
    const bool turned = !chunk.orders.fresh && size != size_;
    chunk.orders.fresh = chunk.orders.fresh || turned;
    size_ = size;
    // A stream that begins here may want another number of frames than were taken.
    if (turned && options_.editor->first_chunk_frames() != options_.editor->chunk_frames()) return false;
    for (const SourceFrame& f : chunk.from) frames.push_back(fit_frames(codec.decode(f.jpeg(), size), size));
  } catch (const Error& e) {
    emit_(Notice{"frame", e.what()});
    return false;
  }
  chunk.source = cat(frames, 0);
  return true;
}

void Pipeline::denoise() {
  EditState state;
  double usual = 0;  // seconds that a chunk takes
  while (auto next = prepared_.take()) {
    Chunk& chunk = **next;
    double clock = steady_seconds();
    {
      const std::lock_guard lock(mutex_);
      needed_at_ = clock + usual;
      ++taken_chunks_;
    }
    changed_.notify_all();
    chunk.row.queue_ms = 1000 * (clock - chunk.handed_on);
    denoise(chunk, state);
    chunk.denoise_ms = lap(clock);
    usual = usual == 0 ? chunk.denoise_ms / 1000 : 0.8 * usual + 0.2 * chunk.denoise_ms / 1000;
    chunk.handed_on = clock;
    if (!denoised_.give(std::move(*next))) return;
  }
}

void Pipeline::denoise(Chunk& chunk, EditState& state) const {
  if (chunk.orders.fresh) state = {};
  if (chunk.orders.fresh || chunk.orders.seed != state.noise.seed) state.noise = Rng{chunk.orders.seed};
  try {
    Denoised out =
        options_.editor->denoise(chunk.latents, *chunk.orders.prompt, state, chunk.orders.sampling);
    chunk.latents = std::move(out.latents);
    for (double s : out.pass_seconds) chunk.row.pass_ms.push_back(1000 * s);
  } catch (const NotFinite&) {
    chunk.latents = {};  // the safeguards show the source and say so
  }
}

// The edit at the strength asked for, outside the protected regions.
Tensor Pipeline::settle(const Chunk& chunk, VideoState& decoder) const {
  if (chunk.orders.fresh) decoder = {};
  if (!chunk.latents) return {};
  const Tensor edit = options_.editor->decode_frames(chunk.latents, decoder);
  if (chunk.orders.strength < 1) blend(chunk.source, edit, chunk.orders.strength);
  for (const Region& r : chunk.orders.regions) keep_region(chunk.source, edit, r);
  return edit;
}

void Pipeline::finish() {
  JpegCodec codec;
  VideoState decoder;
  std::unique_ptr<StreamGuard> guard;
  double last_arrived = 0;
  bool refused = false;
  while (auto next = denoised_.take()) {
    Chunk& chunk = **next;
    double clock = steady_seconds();
    chunk.row.queue_ms += 1000 * (clock - chunk.handed_on);
    if (!guard)
      guard = std::make_unique<StreamGuard>(*options_.safeguards,
                                            StreamFacts{options_.name, options_.editor->model().config().name,
                                                        chunk.orders.prompt->text, chunk.orders.seed});
    else if (chunk.orders.fresh)
      guard->reset();
    const double begun = std::exchange(last_arrived, chunk.from.back().arrived);
    const double seconds = std::clamp((last_arrived - begun) / double(chunk.row.frames), 1.0 / 120, 1.0);
    const Tensor edit = settle(chunk, decoder);
    chunk.row.latents_ms = lap(clock);
    try {
      guard->look_at_source(chunk.source);
    } catch (const Refused& e) {
      if (!std::exchange(refused, true)) emit_(Notice{"source", e.what()});
      continue;
    }
    const GuardedFrames guarded = guard->apply(chunk.source, edit, seconds);
    chunk.row.guard_ms = lap(clock);
    report(guarded);
    send(chunk, guarded, codec);
  }
  if (guard) guard->finish();
}

// Says when the picture goes back to the source, and when the edit is shown again.
void Pipeline::report(const GuardedFrames& guarded) {
  if (guarded.fell_back && !falling_back_)
    emit_(Notice{"fallback", guarded.alarms.empty() ? "the source is shown" : guarded.alarms.front().text});
  if (!guarded.fell_back && falling_back_) emit_(Notice{"recovered", "the edit is shown again"});
  falling_back_ = guarded.fell_back;
}

void Pipeline::send(Chunk& chunk, const GuardedFrames& guarded, JpegCodec& codec) {
  double clock = steady_seconds();
  const double begun = clock - (chunk.row.latents_ms + chunk.row.guard_ms) / 1000;
  EditedChunk out;
  for (size_t i = 0; i < chunk.from.size(); ++i) {
    PictureHeader header = chunk.from[i].header;
    header.kind = PictureKind::source;
    const auto source = std::make_shared<const std::string>(picture_message(header, chunk.from[i].jpeg()));
    header.kind = PictureKind::edited;
    header.flags = guarded.fell_back ? kShowsSource : 0;
    const Tensor frame = guarded.frames.select(0, int64_t(i)).contiguous();
    out.frames.push_back(
        {std::make_shared<const std::string>(picture_message(header, codec.encode(frame))), source});
  }
  chunk.row.jpeg_ms = lap(clock);
  chunk.row.chunk = chunks_++;
  chunk.row.total_ms = 1000 * (clock - chunk.from.front().arrived);
  chunk.row.stage_ms = std::max({chunk.prepare_ms, chunk.denoise_ms, 1000 * (clock - begun)});
  chunk.row.fell_back = guarded.fell_back;
  chunk.row.dropped = frames_.dropped();
  out.row = chunk.row;
  emit_(std::move(out));
}

}  // namespace rivulet::serve
