// Attention of a block of queries of one row and one KV head over a range of that row's keys.
//
// Keys and values are read in place, page by page, and packed for the matrix products one block at a time; the packed
// block stays in the first-level cache. The softmax is online, in base 2.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>

#include "simd.h"

namespace sgjax {

constexpr int kKeyBlock = 128;
constexpr int kPrefetchKeys = 32;
constexpr int kCacheLineBytes = 64;
constexpr int kKeyTile = 2 * kLanes;  // What is packed and multiplied is a multiple of this.
constexpr float kLog2E = 1.4426950408889634f;

inline int RoundUp(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

struct Sizes {
  int num_tokens, num_rows, num_kv_heads, group, head_dim, num_pages, page_size, max_pages;
  int64_t window;  // 0: none
  float scale, soft_cap;  // soft_cap 0: none
};

// The operands, as in sgjax/kernels/paged_prefill/api.py.
template <typename T>
struct Problem : Sizes {
  const T *q, *k_cache, *v_cache;
  const int32_t* page_table;
  T* out;
  float* lse;
};

struct QueryBlock {
  int row, head;
  int first_token, num_tokens;  // in q
  int first_position;           // of first_token in the row; past all keys where every query sees them all
  int key_begin, key_end;
  int partial;  // Where the result waits for those of other key ranges; -1: there are none, it goes to `out`.
};

// Where a block of keys lies: rows of the cache as (K * N * page, H). Behind `count`, -1 up to the next whole tile.
struct KeyRows {
  int count = 0;
  int64_t rows[kKeyBlock];
};

// Floats that one partial result takes.
inline int64_t PartialSize(const Sizes& sizes) { return int64_t{sizes.group} * (sizes.head_dim + 2); }

// One thread's working memory, grown to the largest block it has met.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void Resize(int num_queries, int depth_units, int head_columns) {
    const int rows = RoundUp(num_queries, kLanes);
    const int sizes[] = {rows * depth_units,         rows * head_columns,      rows, rows, depth_units * kKeyBlock,
                         kKeyBlock * head_columns, kTileRows * kKeyBlock, kTileRows * kKeyBlock};
    float** targets[] = {&queries, &sums, &max_scores, &totals, &keys, &values, &scores, &probabilities};
    size_t total = 0;
    for (int size : sizes) total += RoundUp(size, kLanes);
    if (total > size_) {
      std::free(memory_);
      memory_ = static_cast<float*>(std::aligned_alloc(64, RoundUp(total * sizeof(float), 64)));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = total;
    }
    float* next = memory_;
    for (int i = 0; i < 8; ++i) {
      *targets[i] = next;
      next += RoundUp(sizes[i], kLanes);
    }
  }
  float *queries, *sums, *max_scores, *totals, *keys, *values, *scores, *probabilities;

 private:
  float* memory_ = nullptr;
  size_t size_ = 0;
};

template <typename T>
class Attention {
 public:
  Attention(const Problem<T>& problem, Scratch& scratch)
      : p_(problem),
        s_(scratch),
        head_columns_(RoundUp(problem.head_dim, kLanes * kPerUnit)),
        depth_(head_columns_ / kPerUnit) {}

  void Run(const QueryBlock& block, float* partials) {
    const int rows = block.num_tokens * p_.group;
    s_.Resize(rows, depth_, head_columns_);
    LoadQueries(block);
    std::fill_n(s_.sums, rows * head_columns_, 0.f);
    std::fill_n(s_.max_scores, rows, -FLT_MAX);
    std::fill_n(s_.totals, rows, 0.f);
    // Balanced tiles: 7 rows are 4 and 3, not 6 and 1.
    const int num_tiles = (rows + kTileRows - 1) / kTileRows, tile_rows = (rows + num_tiles - 1) / num_tiles;
    KeyRows keys;
    for (int key = block.key_begin; key < block.key_end; key += kKeyBlock) {
      FindKeys(block, key, keys);
      PackKeys(keys);
      PackValues(keys);
      for (int row = 0; row < rows; row += tile_rows) Tile(block, key, keys.count, row, std::min(tile_rows, rows - row));
    }
    if (block.partial >= 0) return StorePartial(partials + block.partial * PartialSize(p_), rows);
    for (int row = 0; row < rows; ++row)
      StoreOutput(block, row, s_.sums + row * head_columns_, s_.max_scores[row], s_.totals[row]);
  }

  // Joins the partial results of one token's key ranges.
  void Merge(const QueryBlock& block, const float* partials, int num_partials) {
    partials += block.partial * PartialSize(p_);
    s_.Resize(1, depth_, head_columns_);
    for (int row = 0; row < p_.group; ++row) {
      const float* first = partials + row * (p_.head_dim + 2);
      float max_score = -FLT_MAX, total = 0;
      for (int i = 0; i < num_partials; ++i) max_score = std::max(max_score, first[i * PartialSize(p_)]);
      std::fill_n(s_.sums, p_.head_dim, 0.f);
      for (int i = 0; i < num_partials; ++i) {
        const float* partial = first + i * PartialSize(p_);
        const float decay = std::exp2(partial[0] - max_score);
        total += decay * partial[1];
        for (int h = 0; h < p_.head_dim; ++h) s_.sums[h] += decay * partial[2 + h];
      }
      StoreOutput(block, row, s_.sums, max_score, total);
    }
  }

 private:
  static constexpr int kPerUnit = Units<T>::kPerUnit;

  // Which query head of which token a block's row is, counted through q.
  int64_t QueryIndex(const QueryBlock& block, int row) const {
    const int64_t token = block.first_token + row / p_.group;
    return (token * p_.num_kv_heads + block.head) * p_.group + row % p_.group;
  }

  // kLanes units of `row` from `unit` on; past the head's end, and without a row, zeros.
  Vec ReadUnits(const T* row, int unit) const {
    const int element = unit * kPerUnit, count = kLanes * kPerUnit;
    if (row == nullptr) return Vec{};
    if (element + count <= p_.head_dim) return Units<T>::Read(row + element);
    T padded[kLanes * kPerUnit] = {};
    std::copy(row + element, row + p_.head_dim, padded);
    return Units<T>::Read(padded);
  }

  void LoadQueries(const QueryBlock& block) {
    for (int row = 0; row < block.num_tokens * p_.group; ++row) {
      const T* query = p_.q + QueryIndex(block, row) * p_.head_dim;
      for (int u = 0; u < depth_; u += kLanes) Store(s_.queries + row * depth_ + u, ReadUnits(query, u));
    }
  }

  void FindKeys(const QueryBlock& block, int first_key, KeyRows& keys) const {
    keys.count = std::min(kKeyBlock, block.key_end - first_key);
    const int32_t* pages = p_.page_table + int64_t{block.row} * p_.max_pages;
    const int64_t first_page = int64_t{block.head} * p_.num_pages;
    for (int i = 0; i < keys.count;) {
      const int slot = (first_key + i) % p_.page_size, stop = std::min(keys.count, i + p_.page_size - slot);
      const int64_t page = first_page + pages[(first_key + i) / p_.page_size];
      for (int64_t row = page * p_.page_size + slot; i < stop; ++i, ++row) keys.rows[i] = row;
    }
    std::fill(keys.rows + keys.count, keys.rows + RoundUp(keys.count, kKeyTile), -1);
  }

  const T* Row(const T* cache, int64_t row) const { return row < 0 ? nullptr : cache + row * p_.head_dim; }

  // Hardware prefetching stops at the end of a page, and pages lie anywhere: without this a third of the bandwidth is
  // lost. Inlined by force: GCC 12 takes a function that only prefetches for one without effect, and drops its calls.
  __attribute__((always_inline)) void Prefetch(const T* cache, const KeyRows& keys, int begin) const {
    for (int i = begin; i < std::min(begin + kLanes, keys.count); ++i) {
      const char* row = reinterpret_cast<const char*>(Row(cache, keys.rows[i]));
      for (int byte = 0; byte < p_.head_dim * static_cast<int>(sizeof(T)); byte += kCacheLineBytes)
        __builtin_prefetch(row + byte);
    }
  }

  // As (depth, kKeyBlock) units; zeros past the last key, where slots may hold NaN.
  void PackKeys(const KeyRows& keys) {
    for (int i = 0; i < RoundUp(keys.count, kKeyTile); i += kLanes) {
      Prefetch(p_.k_cache, keys, i + kPrefetchKeys);
      Prefetch(p_.v_cache, keys, i);
      for (int u = 0; u < depth_; u += kLanes) {
        Vec units[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) units[lane] = ReadUnits(Row(p_.k_cache, keys.rows[i + lane]), u);
        Transpose(units);
        for (int lane = 0; lane < kLanes; ++lane) Store(s_.keys + (u + lane) * kKeyBlock + i, units[lane]);
      }
    }
  }

  // As (keys, head) units; zeros as above.
  void PackValues(const KeyRows& keys) {
    for (int i = 0; i < RoundUp(keys.count, kKeyTile); i += kPerUnit) {
      const T* first = Row(p_.v_cache, keys.rows[i]);
      float* target = s_.values + i / kPerUnit * head_columns_;
      for (int u = 0; u < depth_; u += kLanes) {
        if constexpr (kPerUnit == 1) {
          Store(target + u, ReadUnits(first, u));
        } else {
          const T* second = Row(p_.v_cache, keys.rows[i + 1]);
          Units<T>::StoreInterleaved(target + 2 * u, ReadUnits(first, u), ReadUnits(second, u));
        }
      }
    }
  }

  // Scores, softmax and weighted sums of a few queries over the packed block.
  void Tile(const QueryBlock& block, int first_key, int num_keys, int first_row, int rows) {
    const int first_position = block.first_position - first_key;  // relative to the block, as all below
    const int last = std::min(num_keys, first_position + (first_row + rows - 1) / p_.group + 1);
    if (last <= 0) return;
    const int columns = RoundUp(last, kKeyTile);
    Multiply<T>({s_.queries + first_row * depth_, depth_, s_.keys, kKeyBlock, s_.scores, kKeyBlock, nullptr}, rows,
                depth_, columns);
    float decay[kTileRows];
    for (int i = 0; i < rows; ++i) {
      const int row = first_row + i, position = first_position + row / p_.group;
      const int begin = p_.window ? static_cast<int>(std::max<int64_t>(0, position - p_.window + 1)) : 0;
      decay[i] = Softmax(i, row, begin, std::min(num_keys, position + 1), columns);
    }
    Multiply<T>({s_.probabilities, kKeyBlock / kPerUnit, s_.values, head_columns_,
                 s_.sums + first_row * head_columns_, head_columns_, decay},
                rows, columns / kPerUnit, head_columns_);
  }

  // Probabilities of the keys in [begin, end); returns the factor by which earlier sums shrink.
  float Softmax(int tile_row, int row, int begin, int end, int columns) {
    float* scores = s_.scores + tile_row * kKeyBlock;
    float* target = s_.probabilities + tile_row * (kKeyBlock / kPerUnit);
    Vec largest = Splat(-FLT_MAX);
    for (int c = 0; c < columns; c += kLanes) {
      Vec x = Load(scores + c);
      if (p_.soft_cap) {
        x = Tanh(x * (p_.scale / p_.soft_cap)) * (p_.soft_cap * kLog2E);
      } else {
        x = x * (p_.scale * kLog2E);
      }
      if (c < begin || c + kLanes > end) x = Mask(x, begin - c, end - c);
      Store(scores + c, x);
      largest = Max(largest, x);
    }
    const float old_max = s_.max_scores[row], new_max = std::max(old_max, MaxLane(largest));
    Vec total = {};
    for (int c = 0; c < columns; c += 2 * kLanes) {
      const Vec low = Exp2(Load(scores + c) - new_max), high = Exp2(Load(scores + c + kLanes) - new_max);
      total += low + high;
      Units<T>::StoreProbabilities(target + c / kPerUnit, low, high);
    }
    const float decay = std::exp2(old_max - new_max);
    s_.max_scores[row] = new_max;
    s_.totals[row] = s_.totals[row] * decay + SumLanes(total);
    return decay;
  }

  // Lanes outside [begin, end) become minus infinity.
  static Vec Mask(Vec x, int begin, int end) {
    VecInt lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    return (lane >= begin) & (lane < end) ? x : Splat(-std::numeric_limits<float>::infinity());
  }

  void StorePartial(float* target, int rows) const {
    for (int row = 0; row < rows; ++row) {
      *target++ = s_.max_scores[row];
      *target++ = s_.totals[row];
      target = std::copy_n(s_.sums + row * head_columns_, p_.head_dim, target);
    }
  }

  void StoreOutput(const QueryBlock& block, int row, const float* sums, float max_score, float total) const {
    const int64_t index = QueryIndex(block, row);
    T* out = p_.out + index * p_.head_dim;
    const float factor = total > 0 ? 1 / total : 0;
    for (int h = 0; h < p_.head_dim; ++h) out[h] = FromFloat(sums[h] * factor, T{});
    if (total > 0) p_.lse[index] = (max_score + std::log2(total)) / kLog2E;
  }

  const Problem<T>& p_;
  Scratch& s_;
  const int head_columns_, depth_;
};

}  // namespace sgjax
