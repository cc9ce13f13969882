// The XLA custom calls "sgjax_paged_decode" and "sgjax_paged_prefill" of a CPU: cut the work into blocks that threads
// take one after the other. Contracts: sgjax/kernels/paged_{decode,prefill}/api.py.

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "attention.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace sgjax {
namespace {

// Long rows of a decode step are cut here. By position alone, so that a row's result does not depend on its batch.
constexpr int kKeysPerRange = 512;
// Queries (tokens times group) of a prefill block: enough to make packing the keys cheap.
constexpr int kQueriesPerBlock = 96;
// Below this many keys in all, waking another thread costs more than it saves.
constexpr int64_t kKeysWorthAThread = 512;

// Calls work(i) for i in [0, num_items) on the calling thread and on XLA's pool. Returns when all are done. It waits
// only for items that a thread has begun, never for a thread to start: the caller may itself be the pool's only thread.
template <typename Work>
void ParallelFor(ffi::ThreadPool& pool, int num_items, int num_threads, const Work& work) {
  struct Job {
    std::atomic<int> next{0}, done{0};
    int num_items;
    const Work* work;  // not touched once all items are taken: a late helper may outlive it
  };
  auto job = std::make_shared<Job>();
  job->num_items = num_items;
  job->work = &work;
  auto take = [job] {
    for (int i; (i = job->next.fetch_add(1, std::memory_order_relaxed)) < job->num_items;) {
      (*job->work)(i);
      job->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int i = 1; i < std::min(num_threads, num_items); ++i) pool.Schedule(decltype(take)(take));
  take();
  while (job->done.load(std::memory_order_acquire) < num_items) std::this_thread::yield();
}

enum class Kind {
  kDecode,
  kPrefill,
  kShared,  // a prefill that is not causal: every query sees all keys of its row
};

struct Plan {
  std::vector<QueryBlock> blocks;
  struct Split {
    QueryBlock first;
    int num_ranges;
  };
  std::vector<Split> splits;
  int num_partials = 0;
  int64_t num_keys = 0;

  // A row's queries in blocks, each with the keys that any of its queries sees.
  void AddRow(const Sizes& sizes, int row, int first_token, int num_tokens, int kv_len, Kind kind) {
    const int step = std::max(1, kQueriesPerBlock / sizes.group);
    for (int head = 0; head < sizes.num_kv_heads; ++head) {
      for (int i = 0; i < num_tokens; i += step) {
        QueryBlock block{row, head, first_token + i, std::min(step, num_tokens - i), kv_len, 0, kv_len, -1};
        if (kind != Kind::kShared) {
          block.first_position += i - num_tokens;
          block.key_end = block.first_position + block.num_tokens;
        }
        if (sizes.window) block.key_begin = std::max<int64_t>(0, block.first_position - sizes.window + 1);
        block.key_begin -= block.key_begin % kKeyTile;
        num_keys += block.key_end - block.key_begin;
        if (kind == Kind::kDecode) {
          AddRanges(block);
        } else {
          blocks.push_back(block);
        }
      }
    }
  }

  void AddRanges(QueryBlock block) {
    const int end = block.key_end, first = block.key_begin / kKeysPerRange, last = (end - 1) / kKeysPerRange;
    for (int range = first; range <= last; ++range) {
      block.key_end = std::min(end, (range + 1) * kKeysPerRange);
      if (first < last) block.partial = num_partials++;
      if (first < last && range == first) splits.push_back({block, last - first + 1});
      blocks.push_back(block);
      block.key_begin = block.key_end;
    }
  }
};

template <typename T>
void Attend(ffi::ThreadPool& pool, const Problem<T>& problem, Plan& plan) {
  // The largest first, so that no thread is left with one at the end.
  auto size = [](const QueryBlock& block) { return int64_t{block.key_end - block.key_begin} * block.num_tokens; };
  std::stable_sort(plan.blocks.begin(), plan.blocks.end(),
                   [&](const QueryBlock& a, const QueryBlock& b) { return size(a) > size(b); });
  std::vector<float> partials(plan.num_partials * PartialSize(problem));
  static thread_local Scratch scratch;
  const int num_threads = plan.num_keys < kKeysWorthAThread ? 1 : static_cast<int>(pool.num_threads());
  ParallelFor(pool, static_cast<int>(plan.blocks.size()), num_threads,
              [&](int i) { Attention<T>(problem, scratch).Run(plan.blocks[i], partials.data()); });
  for (const Plan::Split& split : plan.splits)
    Attention<T>(problem, scratch).Merge(split.first, partials.data(), split.num_ranges);
}

template <typename T>
void Run(ffi::ThreadPool& pool, const Sizes& sizes, const void* q, const void* k_cache, const void* v_cache,
         const int32_t* page_table, void* out, float* lse, Plan& plan) {
  Problem<T> problem{sizes,
                     static_cast<const T*>(q),
                     static_cast<const T*>(k_cache),
                     static_cast<const T*>(v_cache),
                     page_table,
                     static_cast<T*>(out),
                     lse};
  const int64_t num_queries = int64_t{sizes.num_tokens} * sizes.num_kv_heads * sizes.group;
  std::memset(out, 0, num_queries * sizes.head_dim * sizeof(T));
  std::fill_n(lse, num_queries, -std::numeric_limits<float>::infinity());
  Attend(pool, problem, plan);
}

ffi::Error Invalid(const std::string& message) { return ffi::Error::InvalidArgument("native attention: " + message); }

// What would read outside the arrays; everything else the Python side checks when it is traced.
ffi::Error Check(const Sizes& sizes, const int32_t* page_table, int row, int kv_len, int num_queries, Kind kind) {
  const int num_used = (kv_len + sizes.page_size - 1) / sizes.page_size;
  if (kv_len < 0 || num_used > sizes.max_pages)
    return Invalid("row " + std::to_string(row) + " has " + std::to_string(kv_len) + " tokens, more than its pages hold");
  if (num_queries < 0 || (num_queries > kv_len && kind != Kind::kShared))
    return Invalid("row " + std::to_string(row) + " has more queries than tokens");
  for (int i = 0; i < num_used; ++i) {
    const int32_t page = page_table[int64_t{row} * sizes.max_pages + i];
    if (page < 0 || page >= sizes.num_pages) return Invalid("no page " + std::to_string(page));
  }
  return ffi::Error::Success();
}

using Ints = ffi::Buffer<ffi::S32>;
using Floats = ffi::Buffer<ffi::F32>;

// q_starts is not read in a decode step, whose rows have one query each, padding rows none.
ffi::Error Call(ffi::ThreadPool& pool, const ffi::AnyBuffer& q, const ffi::AnyBuffer& k_cache,
                const ffi::AnyBuffer& v_cache, const Ints& page_table, const Ints& kv_lens, const int32_t* q_starts,
                ffi::AnyBuffer& out, Floats& lse, float scale, int64_t window, float soft_cap, Kind kind) {
  const auto q_shape = q.dimensions(), cache_shape = k_cache.dimensions(), table_shape = page_table.dimensions();
  auto size = [](int64_t x) { return static_cast<int>(x); };
  const Sizes sizes{size(q_shape[0]),     size(table_shape[0]), size(q_shape[1]),     size(q_shape[2]),
                    size(q_shape[3]),     size(cache_shape[1]), size(cache_shape[2]), size(table_shape[1]),
                    window,               scale,                soft_cap};
  Plan plan;
  for (int row = 0; row < sizes.num_rows; ++row) {
    const int kv_len = kv_lens.typed_data()[row];
    const bool decode = kind == Kind::kDecode;
    const int first = decode ? row : q_starts[row], end = decode ? row + (kv_len > 0) : q_starts[row + 1];
    if (first < 0 || end > sizes.num_tokens) return Invalid("row " + std::to_string(row) + "'s queries are not in q");
    if (ffi::Error error = Check(sizes, page_table.typed_data(), row, kv_len, end - first, kind); error.failure())
      return error;
    plan.AddRow(sizes, row, first, end - first, kv_len, kind);
  }
  auto run = q.element_type() == ffi::DataType::F32 ? Run<float> : Run<BFloat16>;
  run(pool, sizes, q.untyped_data(), k_cache.untyped_data(), v_cache.untyped_data(), page_table.typed_data(),
      out.untyped_data(), lse.typed_data(), plan);
  return ffi::Error::Success();
}

ffi::Error PagedDecode(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k_cache, ffi::AnyBuffer v_cache,
                       Ints page_table, Ints kv_lens, ffi::Result<ffi::AnyBuffer> out, ffi::Result<Floats> lse,
                       float scale, int64_t window, float soft_cap) {
  return Call(pool, q, k_cache, v_cache, page_table, kv_lens, nullptr, *out, *lse, scale, window, soft_cap,
              Kind::kDecode);
}

ffi::Error PagedPrefill(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k_cache, ffi::AnyBuffer v_cache,
                        Ints page_table, Ints kv_lens, Ints q_starts, ffi::Result<ffi::AnyBuffer> out,
                        ffi::Result<Floats> lse, float scale, int64_t window, float soft_cap, bool causal) {
  return Call(pool, q, k_cache, v_cache, page_table, kv_lens, q_starts.typed_data(), *out, *lse, scale, window,
              soft_cap, causal ? Kind::kPrefill : Kind::kShared);
}

auto BindCaches() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<Ints>()
      .Arg<Ints>();
}

template <typename Binding>
auto BindResults(Binding binding) {
  auto results = std::move(binding).template Ret<ffi::AnyBuffer>().template Ret<Floats>();
  return std::move(results)
      .template Attr<float>("scale")
      .template Attr<int64_t>("window")
      .template Attr<float>("soft_cap");
}

auto DecodeBinding() { return BindResults(BindCaches()); }

auto PrefillBinding() { return BindResults(BindCaches().Arg<Ints>()).Attr<bool>("causal"); }

}  // namespace
}  // namespace sgjax

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT XLA_FFI_Error* sgjax_paged_decode(XLA_FFI_CallFrame* frame);
EXPORT XLA_FFI_Error* sgjax_paged_prefill(XLA_FFI_CallFrame* frame);

XLA_FFI_DEFINE_HANDLER_SYMBOL(sgjax_paged_decode, sgjax::PagedDecode, sgjax::DecodeBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(sgjax_paged_prefill, sgjax::PagedPrefill, sgjax::PrefillBinding());
