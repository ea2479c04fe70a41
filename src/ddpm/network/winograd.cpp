// Convolution of 3x3 kernels of images whose channels lie innermost: the minimal filtering F(2x2, 3x3) of Winograd (Lavin
// and Gray 2016, arXiv:1509.09308), which multiplies 2.25 times less than the definition.
//
// Images are cut into tiles of 2x2 outputs, each from 4x4 inputs. In the transformed domain, of 16 points, the
// convolution is a product of matrices (tiles, in channels) (in channels, out channels) at each point.
//
// y: (batch, height, width, channels out), x: (batch, height + 2 - 2 padding, width + 2 - 2 padding, channels in), weight:
// (out, 3, 3, in), float32. Channels are multiples of 16.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, ROWS = 8;
#else
constexpr int64_t LANES = 8, ROWS = 4;
#endif
constexpr int64_t COLUMNS = 2 * LANES;
constexpr int64_t CACHE = 48 * 1024;  // numbers that a core keeps near


typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec& at(float* p) { return *(vec*)p; }
inline vec at(const float* p) { return *(const vec*)p; }

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Memory that a thread keeps for its next call.
struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    float* of(int64_t wanted) {
        if (wanted > size) {
            std::free(data);
            data = (float*)std::aligned_alloc(64, up(4 * wanted, 64));
            size = wanted;
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

// Of the outputs.
struct Shape {
    int64_t batch, height, width, padding;
    int64_t rows() const { return (height + 1) / 2; }
    int64_t columns() const { return (width + 1) / 2; }
    int64_t tiles() const { return batch * rows() * columns(); }
    Shape input() const { return {batch, height + 2 - 2 * padding, width + 2 - 2 * padding, 0}; }
};

// Where a tile begins.
struct Place {
    int64_t image, y, x;
    Place(Shape n, int64_t tile) {
        x = tile % n.columns() * 2;
        y = tile / n.columns() % n.rows() * 2;
        image = tile / n.columns() / n.rows();
    }
};

inline bool inside(Shape n, int64_t y, int64_t x) { return y >= 0 && y < n.height && x >= 0 && x < n.width; }

inline const float* pixel(const float* image, Shape n, int64_t b, int64_t y, int64_t x, int64_t channels) {
    return image + ((b * n.height + y) * n.width + x) * channels;
}

// B^T d B of the 4x4 inputs of each tile, to v (16, tiles, stride).
void transform_input(const float* x, const float* zeros, Shape n, int64_t channels, int64_t first, int64_t count,
                     float* v, int64_t stride, int64_t point) {
    const Shape in = n.input();
    for (int64_t t = 0; t < count; t++) {
        const Place place(n, first + t);
        const float* d[16];
        for (int64_t i = 0; i < 16; i++) {
            const int64_t row = place.y + i / 4 - n.padding, column = place.x + i % 4 - n.padding;
            d[i] = inside(in, row, column) ? pixel(x, in, place.image, row, column, channels) : zeros;
        }
        for (int64_t c = 0; c < channels; c += LANES) {
            vec half[16];
#pragma GCC unroll 4
            for (int64_t j = 0; j < 4; j++) {
                const vec d_0 = at(d[j] + c), d_1 = at(d[4 + j] + c), d_2 = at(d[8 + j] + c), d_3 = at(d[12 + j] + c);
                half[j] = d_0 - d_2;
                half[4 + j] = d_1 + d_2;
                half[8 + j] = d_2 - d_1;
                half[12 + j] = d_1 - d_3;
            }
            float* to = v + t * stride + c;
#pragma GCC unroll 4
            for (int64_t i = 0; i < 16; i += 4) {
                at(to + i * point) = half[i] - half[i + 2];
                at(to + (i + 1) * point) = half[i + 1] + half[i + 2];
                at(to + (i + 2) * point) = half[i + 2] - half[i + 1];
                at(to + (i + 3) * point) = half[i + 1] - half[i + 3];
            }
        }
    }
}

// A^T m A + bias of each tile, from m (16, tiles, stride).
void transform_output(const float* m, const float* bias, Shape n, int64_t channels, int64_t first, int64_t count,
                      float* y, int64_t stride, int64_t point) {
    for (int64_t t = 0; t < count; t++) {
        const Place place(n, first + t);
        const bool below = place.y + 1 < n.height, right = place.x + 1 < n.width;
        float* to = (float*)pixel(y, n, place.image, place.y, place.x, channels);
        float* under = to + n.width * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            const float* from = m + t * stride + c;
            const vec start = bias ? at(bias + c) : vec{};
            vec upper[4], lower[4];
#pragma GCC unroll 4
            for (int64_t j = 0; j < 4; j++) {
                const vec m_0 = at(from + j * point), m_1 = at(from + (4 + j) * point);
                const vec m_2 = at(from + (8 + j) * point), m_3 = at(from + (12 + j) * point);
                upper[j] = m_0 + m_1 + m_2;
                lower[j] = m_1 - m_2 - m_3;
            }
            at(to + c) = start + upper[0] + upper[1] + upper[2];
            if (right) at(to + channels + c) = start + upper[1] - upper[2] - upper[3];
            if (below) at(under + c) = start + lower[0] + lower[1] + lower[2];
            if (below && right) at(under + channels + c) = start + lower[1] - lower[2] - lower[3];
        }
    }
}

// A dy A^T of the 2x2 gradients of each tile, to g (16, tiles, stride); their sum is added to d_bias.
void transform_gradient(const float* dy, const float* zeros, Shape n, int64_t channels, int64_t first, int64_t count,
                        float* g, int64_t stride, int64_t point, float* d_bias) {
    for (int64_t t = 0; t < count; t++) {
        const Place place(n, first + t);
        const float* d[4];
        for (int64_t i = 0; i < 4; i++) {
            const int64_t row = place.y + i / 2, column = place.x + i % 2;
            d[i] = inside(n, row, column) ? pixel(dy, n, place.image, row, column, channels) : zeros;
        }
        for (int64_t c = 0; c < channels; c += LANES) {
            const vec d_0 = at(d[0] + c), d_1 = at(d[1] + c), d_2 = at(d[2] + c), d_3 = at(d[3] + c);
            at(d_bias + c) += d_0 + d_1 + d_2 + d_3;
            const vec rows[8] = {d_0, d_1, d_0 + d_2, d_1 + d_3, d_0 - d_2, d_1 - d_3, -d_2, -d_3};
            float* to = g + t * stride + c;
#pragma GCC unroll 4
            for (int64_t i = 0; i < 4; i++) {
                const vec l = rows[2 * i], r = rows[2 * i + 1];
                at(to + 4 * i * point) = l;
                at(to + (4 * i + 1) * point) = l + r;
                at(to + (4 * i + 2) * point) = l - r;
                at(to + (4 * i + 3) * point) = -r;
            }
        }
    }
}

// G w G^T of the kernels w of LANES pairs of channels, to u[16].
inline void transform_weight(const vec* w, vec* u) {
    vec half[12];
#pragma GCC unroll 3
    for (int64_t j = 0; j < 3; j++) {
        const vec sum = 0.5f * (w[j] + w[6 + j]), middle = 0.5f * w[3 + j];
        half[j] = w[j];
        half[3 + j] = sum + middle;
        half[6 + j] = sum - middle;
        half[9 + j] = w[6 + j];
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; i++) {
        const vec sum = 0.5f * (half[3 * i] + half[3 * i + 2]), middle = 0.5f * half[3 * i + 1];
        u[4 * i] = half[3 * i];
        u[4 * i + 1] = sum + middle;
        u[4 * i + 2] = sum - middle;
        u[4 * i + 3] = half[3 * i + 2];
    }
}

// The matrices of the convolution, u (16, out / COLUMNS, in, COLUMNS), or, transposed, those of its derivative by the
// image, (16, in / COLUMNS, out, COLUMNS), of kernels turned by half. A thread calls it for its share of the panels.
void weights(const float* weight, int64_t in, int64_t out, bool transposed, float* u, int64_t panel) {
    const int64_t depth = transposed ? out : in, columns = transposed ? in : out;
    const int64_t point = up(columns, COLUMNS) * depth, begin = panel * COLUMNS;
    float* base = u + begin * depth;
    if (begin + COLUMNS > columns)
        for (int64_t i = 0; i < 16; i++) std::memset(base + i * point, 0, 4 * COLUMNS * depth);
    const int64_t end = std::min(begin + COLUMNS, columns);
    vec w[9], found[16];
    if (transposed) {
        for (int64_t k = 0; k < out; k++)
            for (int64_t c = begin; c < end; c += LANES) {
                for (int64_t i = 0; i < 9; i++) w[8 - i] = at(weight + (k * 9 + i) * in + c);
                transform_weight(w, found);
                for (int64_t i = 0; i < 16; i++) at(base + i * point + k * COLUMNS + c - begin) = found[i];
            }
        return;
    }
    float block[16 * LANES * COLUMNS];  // (16, channels in, channels out)
    for (int64_t c = 0; c < in; c += LANES) {
        for (int64_t k = begin; k < end; k++) {
            for (int64_t i = 0; i < 9; i++) w[i] = at(weight + (k * 9 + i) * in + c);
            transform_weight(w, found);
            for (int64_t i = 0; i < 16; i++)
                for (int64_t l = 0; l < LANES; l++) block[(i * LANES + l) * COLUMNS + k - begin] = found[i][l];
        }
        for (int64_t i = 0; i < 16; i++)
            for (int64_t l = 0; l < LANES; l++)
                std::memcpy(base + i * point + (c + l) * COLUMNS, block + (i * LANES + l) * COLUMNS,
                            4 * (end - begin));
    }
}

}  // namespace

extern "C" {

// y = the convolution of x; or, transposed, of y's gradient given as x, the gradient of x.
void winograd(const float* x, const float* weight, const float* bias, float* y, int64_t batch, int64_t height,
              int64_t width, int64_t in, int64_t out, int64_t padding, bool transposed) {
    const Shape n{batch, height, width, padding};
    const int64_t depth = transposed ? out : in, columns = transposed ? in : out;
    const int64_t padded = up(columns, COLUMNS), panels = padded / COLUMNS, total = n.tiles();
    float* u = shared.of(16 * padded * depth + depth);
    float* zeros = u + 16 * padded * depth;
    std::memset(zeros, 0, 4 * depth);
    const int64_t near = std::max(ROWS, CACHE / (16 * (depth + padded)) / ROWS * ROWS);
    const int64_t fair = up((total + omp_get_max_threads() - 1) / omp_get_max_threads(), ROWS);
    const int64_t count = std::min({near, fair, int64_t(256)});
    const int64_t blocks = (total + count - 1) / count;
#pragma omp parallel
    {
        float* v = own.of(16 * count * (depth + padded));
        float* m = v + 16 * count * depth;
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels; panel++) weights(weight, in, out, transposed, u, panel);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * count, tiles = std::min(count, total - first);
            transform_input(x, zeros, n, depth, first, tiles, v, depth, count * depth);
            for (int64_t i = 0; i < 16; i++)
                for (int64_t panel = 0; panel < panels; panel++)
                    for (int64_t t = 0; t < tiles; t += ROWS)
                        product<false>(v + (i * count + t) * depth, depth, 1,
                                       u + (i * panels + panel) * COLUMNS * depth, COLUMNS,
                                       m + (i * count + t) * padded + panel * COLUMNS, padded, depth);
            transform_output(m, bias, n, columns, first, tiles, y, padded, count * padded);
        }
    }
}

// The gradients of the weights and of the bias.
void winograd_weight(const float* x, const float* dy, float* d_weight, float* d_bias, int64_t batch, int64_t height,
                     int64_t width, int64_t in, int64_t out, int64_t padding) {
    const Shape n{batch, height, width, padding};
    const int64_t padded = up(in, COLUMNS), total = n.tiles(), threads = omp_get_max_threads();
    const int64_t v_row = padded + LANES, g_row = out + LANES;  // no powers of two, which would share a few cache lines
    const int64_t each = 16 * out * padded + out;  // of a thread: gradients in the transformed domain, and of the bias
    float* sums = shared.of(threads * each + std::max(in, out));
    float* zeros = sums + threads * each;
    std::memset(zeros, 0, 4 * std::max(in, out));
    const int64_t fair = (total + threads - 1) / threads;
    const int64_t count = std::min(fair, std::max<int64_t>(128, CACHE / (16 * (padded + out))));
    const int64_t blocks = (total + count - 1) / count;
#pragma omp parallel num_threads(threads)
    {
        float* u = sums + omp_get_thread_num() * each;
        std::memset(u, 0, 4 * each);
        float* v = own.of(16 * count * (v_row + g_row));
        float* g = v + 16 * count * v_row;
        if (padded > in) std::memset(v, 0, 4 * 16 * count * v_row);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * count, tiles = std::min(count, total - first);
            transform_input(x, zeros, n, in, first, tiles, v, v_row, count * v_row);
            transform_gradient(dy, zeros, n, out, first, tiles, g, g_row, count * g_row, u + 16 * out * padded);
            for (int64_t i = 0; i < 16; i++)
                for (int64_t c = 0; c < padded; c += COLUMNS)
                    for (int64_t k = 0; k < out; k += ROWS)
                        product<true>(g + i * count * g_row + k, 1, g_row, v + i * count * v_row + c, v_row,
                                      u + (i * out + k) * padded + c, padded, tiles);
        }
        const int64_t team = omp_get_num_threads();
#pragma omp for schedule(static)
        for (int64_t k = 0; k < out; k++) {
            float bias = 0;
            for (int64_t s = 0; s < team; s++) bias += sums[s * each + 16 * out * padded + k];
            d_bias[k] = bias;
            for (int64_t c = 0; c < in; c += LANES) {
                vec sum[16] = {}, half[12];
                for (int64_t s = 0; s < team; s++)
                    for (int64_t i = 0; i < 16; i++)
                        sum[i] += at((const float*)sums + s * each + (i * out + k) * padded + c);
                for (int64_t j = 0; j < 4; j++) {  // G^T u G
                    const vec plus = 0.5f * (sum[4 + j] + sum[8 + j]);
                    half[j] = sum[j] + plus;
                    half[4 + j] = 0.5f * (sum[4 + j] - sum[8 + j]);
                    half[8 + j] = sum[12 + j] + plus;
                }
                for (int64_t i = 0; i < 3; i++) {
                    float* to = d_weight + (k * 9 + 3 * i) * in + c;
                    const vec plus = 0.5f * (half[4 * i + 1] + half[4 * i + 2]);
                    at(to) = half[4 * i] + plus;
                    at(to + in) = 0.5f * (half[4 * i + 1] - half[4 * i + 2]);
                    at(to + 2 * in) = half[4 * i + 3] + plus;
                }
            }
        }
    }
}
}
