// Convolution of 3x3 kernels of images whose channels lie innermost, by minimal filtering (Lavin and Gray 2016,
// arXiv:1509.09308): F(2x2, 3x3) multiplies 2.25 times less than the definition, F(4x4, 3x3) four times less.
//
// Images are cut into tiles of M x M outputs, each from N x N inputs, N = M + 2. In the transformed domain, of N^2 points,
// the convolution is a product of matrices (tiles, in channels) (in channels, out channels) at each point.
//
// y: (batch, height, width, channels out), x: (batch, height + 2 - 2 padding, width + 2 - 2 padding, channels in), weight:
// (out, 3, 3, in); what is computed in between is float32. Channels are multiples of 16.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <omp.h>
#include <sys/mman.h>

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, ROWS = 8;
#else
constexpr int64_t LANES = 8, ROWS = 4;
#endif
constexpr int64_t COLUMNS = 2 * LANES;
constexpr int64_t PAGE = 2 * 1024 * 1024;
constexpr int64_t CACHE = 48 * 1024;  // numbers that a core keeps near
// Strides that are powers of two would share a few lines of the cache: those between points are longer by LANES.

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

inline vec& at(float* p) { return *(vec*)p; }
inline vec at(const float* p) { return *(const vec*)p; }
inline vec at(const bfloat16* p) { return (vec)(__builtin_convertvector(*(const halves*)p, words) << 16); }

inline void put(float* p, vec value) { *(vec*)p = value; }
inline void put(bfloat16* p, vec value) {  // to the nearest, ties to even
    const words bits = (words)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(halves*)p = __builtin_convertvector(value == value ? rounded : 0x7fc0 + (words){}, halves);
}

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory that a thread keeps for its next call, in large pages: matrices of many points lie on many small ones.
struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    float* of(int64_t wanted) {
        if (wanted > size) {
            std::free(data);
            size = up(wanted, PAGE / 4);
            data = (float*)std::aligned_alloc(PAGE, 4 * size);
#ifdef MADV_HUGEPAGE
            madvise(data, 4 * size, MADV_HUGEPAGE);
#endif
        }
        return data;
    }
    ~Buffer() { std::free(data); }
};

thread_local Buffer shared, own;

// out (ROWS, COLUMNS) = or += a (ROWS, depth) b (depth, COLUMNS), of the steps between rows and between columns of a.
template <bool add>
inline void product(const float* a, int64_t row, int64_t column, const float* b, int64_t b_row, float* out,
                    int64_t out_row, int64_t depth) {
    vec left[ROWS], right[ROWS];
#pragma GCC unroll 8
    for (int64_t m = 0; m < ROWS; m++) {
        left[m] = add ? at((const float*)out + m * out_row) : vec{};
        right[m] = add ? at((const float*)out + m * out_row + LANES) : vec{};
    }
    for (int64_t d = 0; d < depth; d++) {
        const vec b_left = at(b + d * b_row), b_right = at(b + d * b_row + LANES);
#pragma GCC unroll 8
        for (int64_t m = 0; m < ROWS; m++) {
            const float value = a[m * row + d * column];
            left[m] += value * b_left;
            right[m] += value * b_right;
        }
    }
#pragma GCC unroll 8
    for (int64_t m = 0; m < ROWS; m++) {
        at(out + m * out_row) = left[m];
        at(out + m * out_row + LANES) = right[m];
    }
}

// The transforms of a line, from and to vectors that lie s and r apart.
template <int64_t M>
struct Line;

template <>
struct Line<2> {
    static inline void input(const vec* d, int64_t s, vec* to, int64_t r) {  // B^T d
        to[0] = d[0] - d[2 * s];
        to[r] = d[s] + d[2 * s];
        to[2 * r] = d[2 * s] - d[s];
        to[3 * r] = d[s] - d[3 * s];
    }
    static inline void output(const vec* m, int64_t s, vec* to, int64_t r) {  // A^T m
        to[0] = m[0] + m[s] + m[2 * s];
        to[r] = m[s] - m[2 * s] - m[3 * s];
    }
    static inline void gradient(const vec* g, int64_t s, vec* to, int64_t r) {  // A g
        to[0] = g[0];
        to[r] = g[0] + g[s];
        to[2 * r] = g[0] - g[s];
        to[3 * r] = -g[s];
    }
    static inline void weight(const vec* w, int64_t s, vec* to, int64_t r) {  // G w
        const vec even = 0.5f * (w[0] + w[2 * s]), odd = 0.5f * w[s];
        to[0] = w[0];
        to[r] = even + odd;
        to[2 * r] = even - odd;
        to[3 * r] = w[2 * s];
    }
    static inline void weight_gradient(const vec* u, int64_t s, vec* to, int64_t r) {  // G^T u
        const vec even = 0.5f * (u[s] + u[2 * s]);
        to[0] = u[0] + even;
        to[r] = 0.5f * (u[s] - u[2 * s]);
        to[2 * r] = u[3 * s] + even;
    }
};

// Of polynomials at 0, +-a, +-b and infinity with a^2 = 1/2 and b^2 = 2, which round less than small integers do.
template <>
struct Line<4> {
    static constexpr float a = 0.70710678f, b = 1.41421356f;
    static inline void input(const vec* d, int64_t s, vec* to, int64_t r) {
        const vec even_a = d[4 * s] - 2.f * d[2 * s], odd_a = a * d[3 * s] - b * d[s];
        const vec even_b = d[4 * s] - 0.5f * d[2 * s], odd_b = b * d[3 * s] - a * d[s];
        to[0] = d[0] + d[4 * s] - 2.5f * d[2 * s];
        to[r] = even_a + odd_a;
        to[2 * r] = even_a - odd_a;
        to[3 * r] = even_b + odd_b;
        to[4 * r] = even_b - odd_b;
        to[5 * r] = d[s] + d[5 * s] - 2.5f * d[3 * s];
    }
    static inline void output(const vec* m, int64_t s, vec* to, int64_t r) {
        const vec even_a = m[s] + m[2 * s], odd_a = m[s] - m[2 * s];
        const vec even_b = m[3 * s] + m[4 * s], odd_b = m[3 * s] - m[4 * s];
        to[0] = m[0] + even_a + even_b;
        to[r] = a * odd_a + b * odd_b;
        to[2 * r] = 0.5f * even_a + 2.f * even_b;
        to[3 * r] = 0.5f * a * odd_a + 2.f * b * odd_b + m[5 * s];
    }
    static inline void gradient(const vec* g, int64_t s, vec* to, int64_t r) {
        const vec even_a = g[0] + 0.5f * g[2 * s], odd_a = a * g[s] + 0.5f * a * g[3 * s];
        const vec even_b = g[0] + 2.f * g[2 * s], odd_b = b * g[s] + 2.f * b * g[3 * s];
        to[0] = g[0];
        to[r] = even_a + odd_a;
        to[2 * r] = even_a - odd_a;
        to[3 * r] = even_b + odd_b;
        to[4 * r] = even_b - odd_b;
        to[5 * r] = g[3 * s];
    }
    static inline void weight(const vec* w, int64_t s, vec* to, int64_t r) {
        const vec even_a = -2.f / 3 * w[0] - 1.f / 3 * w[2 * s], odd_a = -2.f / 3 * a * w[s];
        const vec even_b = 1.f / 6 * w[0] + 1.f / 3 * w[2 * s], odd_b = 1.f / 6 * b * w[s];
        to[0] = w[0];
        to[r] = even_a + odd_a;
        to[2 * r] = even_a - odd_a;
        to[3 * r] = even_b + odd_b;
        to[4 * r] = even_b - odd_b;
        to[5 * r] = w[2 * s];
    }
    static inline void weight_gradient(const vec* u, int64_t s, vec* to, int64_t r) {
        const vec even_a = u[s] + u[2 * s], even_b = u[3 * s] + u[4 * s];
        to[0] = u[0] - 2.f / 3 * even_a + 1.f / 6 * even_b;
        to[r] = -2.f / 3 * a * (u[s] - u[2 * s]) + 1.f / 6 * b * (u[3 * s] - u[4 * s]);
        to[2 * r] = 1.f / 3 * (even_b - even_a) + u[5 * s];
    }
};

// Along both axes: (A, A) to (B, B).
template <int64_t A, int64_t B, class Transform>
inline void square(Transform line, const vec* from, vec* to) {
    vec half[B * A];
#pragma GCC unroll 6
    for (int64_t j = 0; j < A; j++) line(from + j, A, half + j, A);
#pragma GCC unroll 6
    for (int64_t i = 0; i < B; i++) line(half + i * A, 1, to + i * B, 1);
}

// Of the outputs.
struct Shape {
    int64_t batch, height, width, padding;
    Shape input() const { return {batch, height + 2 - 2 * padding, width + 2 - 2 * padding, 0}; }
    int64_t pixel(int64_t image, int64_t y, int64_t x) const { return (image * height + y) * width + x; }
    // Where the pixels of a square of side N are, from (y, x) on; zeros outside the image.
    template <int64_t N, class T>
    void around(const T* images, const T* zeros, int64_t image, int64_t y, int64_t x, int64_t channels,
                const T** to) const {
        const T* corner = images + pixel(image, y, x) * channels;
        const bool within = y >= 0 && x >= 0 && y + N <= height && x + N <= width;
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < N; j++)
                to[i * N + j] = within || (uint64_t(y + i) < uint64_t(height) && uint64_t(x + j) < uint64_t(width))
                                    ? corner + (i * width + j) * channels
                                    : zeros;
    }
};

// The tiles of a batch, counted through.
template <int64_t M>
struct Tiles {
    int64_t rows, columns, all;
    explicit Tiles(Shape n) : rows((n.height + M - 1) / M), columns((n.width + M - 1) / M) {
        all = n.batch * rows * columns;
    }
    int64_t image(int64_t tile) const { return tile / columns / rows; }
    int64_t y(int64_t tile) const { return tile / columns % rows * M; }
    int64_t x(int64_t tile) const { return tile % columns * M; }
};

// B^T d B of the inputs of each tile, to v (N^2, tiles, stride).
template <int64_t M, class T>
void transform_input(const T* x, const T* zeros, Shape n, int64_t channels, int64_t first, int64_t count,
                     float* v, int64_t stride, int64_t point) {
    constexpr int64_t N = M + 2;
    const Shape in = n.input();
    const Tiles<M> tiles(n);
    for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t, y_0 = tiles.y(tile) - n.padding, x_0 = tiles.x(tile) - n.padding;
        const T* pixels[N * N];
        in.around<N>(x, zeros, tiles.image(tile), y_0, x_0, channels, pixels);
        for (int64_t c = 0; c < channels; c += LANES) {
            vec d[N * N], found[N * N];
#pragma GCC unroll 36
            for (int64_t i = 0; i < N * N; i++) d[i] = at(pixels[i] + c);
            square<N, N>(Line<M>::input, d, found);
            float* to = v + t * stride + c;
#pragma GCC unroll 36
            for (int64_t i = 0; i < N * N; i++) at(to + i * point) = found[i];
        }
    }
}

// A^T m A + bias of each tile, from m (N^2, tiles, stride).
template <int64_t M, class T, class W>
void transform_output(const float* m, const W* bias, Shape n, int64_t channels, int64_t first, int64_t count, T* y,
                      int64_t stride, int64_t point) {
    constexpr int64_t N = M + 2;
    const Tiles<M> tiles(n);
    for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t, y_0 = tiles.y(tile), x_0 = tiles.x(tile);
        const int64_t rows = std::min(M, n.height - y_0), columns = std::min(M, n.width - x_0);
        T* corner = y + n.pixel(tiles.image(tile), y_0, x_0) * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            vec d[N * N], found[M * M];
            const float* from = m + t * stride + c;
#pragma GCC unroll 36
            for (int64_t i = 0; i < N * N; i++) d[i] = at(from + i * point);
            square<N, M>(Line<M>::output, d, found);
            const vec start = bias ? at(bias + c) : vec{};
#pragma GCC unroll 4
            for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 4
                for (int64_t j = 0; j < M; j++)
                    if (i < rows && j < columns)
                        put(corner + (i * n.width + j) * channels + c, found[i * M + j] + start);
        }
    }
}

// A dy A^T of the gradients of each tile, to g (N^2, tiles, stride); their sum is added to d_bias.
template <int64_t M, class T>
void transform_gradient(const T* dy, const T* zeros, Shape n, int64_t channels, int64_t first, int64_t count,
                        float* g, int64_t stride, int64_t point, float* d_bias) {
    constexpr int64_t N = M + 2;
    const Tiles<M> tiles(n);
    for (int64_t t = 0; t < count; t++) {
        const int64_t tile = first + t, y_0 = tiles.y(tile), x_0 = tiles.x(tile);
        const T* pixels[M * M];
        n.around<M>(dy, zeros, tiles.image(tile), y_0, x_0, channels, pixels);
        for (int64_t c = 0; c < channels; c += LANES) {
            vec d[M * M], found[N * N], sum = at(d_bias + c);
#pragma GCC unroll 16
            for (int64_t i = 0; i < M * M; i++) sum += d[i] = at(pixels[i] + c);
            at(d_bias + c) = sum;
            square<M, N>(Line<M>::gradient, d, found);
            float* to = g + t * stride + c;
#pragma GCC unroll 36
            for (int64_t i = 0; i < N * N; i++) at(to + i * point) = found[i];
        }
    }
}

// The matrices of the convolution, u (N^2, out / COLUMNS, in, COLUMNS), or, transposed, those of its derivative by the
// image, (N^2, in / COLUMNS, out, COLUMNS), of kernels turned by half. A thread calls it for its share of the panels.
template <int64_t M, class W>
void weights(const W* weight, int64_t in, int64_t out, bool transposed, float* u, int64_t point, int64_t panel) {
    constexpr int64_t N = M + 2;
    const int64_t depth = transposed ? out : in, columns = transposed ? in : out;
    const int64_t begin = panel * COLUMNS;
    float* base = u + begin * depth;
    if (begin + COLUMNS > columns)
        for (int64_t i = 0; i < N * N; i++) std::memset(base + i * point, 0, 4 * COLUMNS * depth);
    const int64_t end = std::min(begin + COLUMNS, columns);
    vec w[9], found[N * N];
    if (transposed) {
        for (int64_t k = 0; k < out; k++)
            for (int64_t c = begin; c < end; c += LANES) {
                for (int64_t i = 0; i < 9; i++) w[8 - i] = at(weight + (k * 9 + i) * in + c);
                square<3, N>(Line<M>::weight, w, found);
                for (int64_t i = 0; i < N * N; i++) at(base + i * point + k * COLUMNS + c - begin) = found[i];
            }
        return;
    }
    float block[LANES * 9 * COLUMNS] = {};  // (channels in, 9, channels out)
    for (int64_t c = 0; c < in; c += LANES) {
        for (int64_t k = begin; k < end; k++)
            for (int64_t i = 0; i < 9; i++) {
                const vec found = at(weight + (k * 9 + i) * in + c);
                for (int64_t l = 0; l < LANES; l++) block[(l * 9 + i) * COLUMNS + k - begin] = found[l];
            }
        for (int64_t l = 0; l < LANES; l++)
            for (int64_t k = 0; k < end - begin; k += LANES) {
                for (int64_t i = 0; i < 9; i++) w[i] = at((const float*)block + (l * 9 + i) * COLUMNS + k);
                square<3, N>(Line<M>::weight, w, found);
                for (int64_t i = 0; i < N * N; i++) at(base + i * point + (c + l) * COLUMNS + k) = found[i];
            }
    }
}

template <int64_t M, class T, class W>
void convolution(const void* x, const void* weight, const void* bias, void* y, Shape n, int64_t in, int64_t out,
                 bool transposed) {
    constexpr int64_t POINTS = (M + 2) * (M + 2);
    const int64_t depth = transposed ? out : in, columns = transposed ? in : out;
    const int64_t padded = up(columns, COLUMNS), panels = padded / COLUMNS, total = Tiles<M>(n).all;
    const int64_t u_point = padded * depth + LANES;
    float* u = shared.of(POINTS * u_point + depth);
    const T* zeros = (T*)std::memset(u + POINTS * u_point, 0, 4 * depth);
    // Few tiles stay in the cache; matrices too large for it are read less often for many.
    const int64_t near = std::max(CACHE / (POINTS * (depth + padded)), depth * padded / 4096);
    const int64_t fair = up((total + omp_get_max_threads() - 1) / omp_get_max_threads(), ROWS);
    const int64_t count = std::min(fair, std::clamp<int64_t>(near / ROWS * ROWS, ROWS, 256));
    const int64_t blocks = (total + count - 1) / count;
    const int64_t v_point = count * depth + LANES, m_point = count * padded + LANES;
#pragma omp parallel
    {
        float* v = own.of(POINTS * (v_point + m_point));
        float* m = v + POINTS * v_point;
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels; panel++) weights<M>((const W*)weight, in, out, transposed, u, u_point, panel);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * count, tiles = std::min(count, total - first);
            transform_input<M>((const T*)x, zeros, n, depth, first, tiles, v, depth, v_point);
            for (int64_t i = 0; i < POINTS; i++)
                for (int64_t panel = 0; panel < panels; panel++)
                    for (int64_t t = 0; t < tiles; t += ROWS)
                        product<false>(v + i * v_point + t * depth, depth, 1, u + i * u_point + panel * COLUMNS * depth,
                                       COLUMNS, m + i * m_point + t * padded + panel * COLUMNS, padded, depth);
            transform_output<M>(m, (const W*)bias, n, columns, first, tiles, (T*)y, padded, m_point);
        }
    }
}

template <int64_t M, class T>
void weight_gradient(const void* x, const void* dy, float* d_weight, float* d_bias, Shape n, int64_t in,
                     int64_t out) {
    constexpr int64_t POINTS = (M + 2) * (M + 2);
    const int64_t padded = up(in, COLUMNS), total = Tiles<M>(n).all, threads = omp_get_max_threads();
    const int64_t v_row = padded + LANES, g_row = out + LANES;
    const int64_t u_point = out * padded + LANES;
    const int64_t each = POINTS * u_point + out;  // of a thread: transformed gradients, and those of the bias
    float* sums = shared.of(threads * each + std::max(in, out));
    const T* zeros = (T*)std::memset(sums + threads * each, 0, 4 * std::max(in, out));
    const int64_t fair = (total + threads - 1) / threads;
    // Few tiles stay in the cache, many read and write the sums less often.
    const int64_t count = std::min(fair, std::max<int64_t>(32, padded * out / (padded + out) / 2));
    const int64_t blocks = (total + count - 1) / count;
    const int64_t v_point = count * v_row + LANES, g_point = count * g_row + LANES;
#pragma omp parallel num_threads(threads)
    {
        float* u = sums + omp_get_thread_num() * each;
        auto sum = product<false>;
        std::memset(u + POINTS * u_point, 0, 4 * out);
        float* v = own.of(POINTS * (v_point + g_point));
        float* g = v + POINTS * v_point;
        if (padded > in) std::memset(v, 0, 4 * POINTS * v_point);
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * count, tiles = std::min(count, total - first);
            transform_input<M>((const T*)x, zeros, n, in, first, tiles, v, v_row, v_point);
            transform_gradient<M>((const T*)dy, zeros, n, out, first, tiles, g, g_row, g_point, u + POINTS * u_point);
            for (int64_t i = 0; i < POINTS; i++)
                for (int64_t c = 0; c < padded; c += COLUMNS)
                    for (int64_t k = 0; k < out; k += ROWS)
                        sum(g + i * g_point + k, 1, g_row, v + i * v_point + c, v_row,
                            u + i * u_point + k * padded + c, padded, tiles);
            sum = product<true>;
        }
        if (sum == product<false>) std::memset(u, 0, 4 * POINTS * u_point);  // of a thread without tiles
#pragma omp barrier
        const int64_t team = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t k = 0; k < out; k++) {
            float bias = 0;
            for (int64_t s = 0; s < team; s++) bias += sums[s * each + POINTS * u_point + k];
            d_bias[k] = bias;
            for (int64_t c = 0; c < in; c += LANES) {
                vec sum[POINTS] = {}, found[9];
                for (int64_t s = 0; s < team; s++)
                    for (int64_t i = 0; i < POINTS; i++)
                        sum[i] += at((const float*)sums + s * each + i * u_point + k * padded + c);
                square<M + 2, 3>(Line<M>::weight_gradient, sum, found);
                for (int64_t i = 0; i < 9; i++) at(d_weight + (k * 9 + i) * in + c) = found[i];
            }
        }
    }
}

}  // namespace

extern "C" {

// y = the convolution of x; or, transposed, of y's gradient given as x, the gradient of x. M is 2 or 4; images, and weights
// and bias, are in bfloat16 or in float32.
void winograd(int64_t M, bool half_images, bool half_weights, const void* x, const void* weight, const void* bias, void* y,
              int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, int64_t padding, bool transposed) {
    const auto of = [&](auto image, auto number) {
        using T = decltype(image);
        using W = decltype(number);
        auto run = M == 4 ? convolution<4, T, W> : convolution<2, T, W>;
        run(x, weight, bias, y, {batch, height, width, padding}, in, out, transposed);
    };
    const auto of_images = [&](auto number) { half_images ? of(bfloat16{}, number) : of(float{}, number); };
    half_weights ? of_images(bfloat16{}) : of_images(float{});
}

// The gradients of the weights and of the bias, in float32.
void winograd_weight(int64_t M, bool half_images, const void* x, const void* dy, float* d_weight, float* d_bias,
                     int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, int64_t padding) {
    const auto of = [&](auto image) {
        using T = decltype(image);
        auto run = M == 4 ? weight_gradient<4, T> : weight_gradient<2, T>;
        run(x, dy, d_weight, d_bias, {batch, height, width, padding}, in, out);
    };
    half_images ? of(bfloat16{}) : of(float{});
}
}
