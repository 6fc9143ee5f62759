// What lies around a YOLO detector: letterbox before it, boxes behind it. C++17, no dependencies.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace yolo {

struct Box {
    float left, top, right, bottom, score;
    int label;
};

struct Letterbox {
    float across, down;  // each side is rounded to whole pixels, so that their scales differ a little
    int left, top;
};

// Ultralytics' letterbox: the longer side fits, the rest is grey (114) on both sides. Linear interpolation with pixel
// centres aligned, as OpenCV has it. `image` is height x width x 3, RGB, 8 bits; `input` is 3 x rows x columns in [0, 1].
inline Letterbox letterbox(const uint8_t* image, int height, int width, float* input, int rows, int columns) {
    const float scale = std::min(rows / static_cast<float>(height), columns / static_cast<float>(width));
    const int new_height = static_cast<int>(std::round(height * scale)), new_width = static_cast<int>(std::round(width * scale));
    const int top = static_cast<int>(std::round((rows - new_height) / 2.0f - 0.1f));
    const int left = static_cast<int>(std::round((columns - new_width) / 2.0f - 0.1f));
    std::fill(input, input + 3 * rows * columns, 114 / 255.0f);
    for (int y = 0; y < new_height; ++y) {
        const float from_y = std::max((y + 0.5f) * height / new_height - 0.5f, 0.0f);
        const int y0 = std::min(static_cast<int>(from_y), height - 1), y1 = std::min(y0 + 1, height - 1);
        const float below_share = from_y - y0;
        for (int x = 0; x < new_width; ++x) {
            const float from_x = std::max((x + 0.5f) * width / new_width - 0.5f, 0.0f);
            const int x0 = std::min(static_cast<int>(from_x), width - 1), x1 = std::min(x0 + 1, width - 1);
            const float right = from_x - x0;
            for (int channel = 0; channel < 3; ++channel) {
                const auto at = [&](int row, int column) { return static_cast<float>(image[(row * width + column) * 3 + channel]); };
                const float above = at(y0, x0) * (1 - right) + at(y0, x1) * right;
                const float below = at(y1, x0) * (1 - right) + at(y1, x1) * right;
                const float value = std::round(above * (1 - below_share) + below * below_share);
                input[(channel * rows + top + y) * columns + left + x] = value / 255.0f;
            }
        }
    }
    return {new_width / static_cast<float>(width), new_height / static_cast<float>(height), left, top};
}

// Boxes of an output in pixels of the input. Either 4 + classes rows (centre, size, scores) by anchors, or, for models
// that are end to end, a row an object: left, top, right, bottom, score, class.
inline std::vector<Box> decode(const float* output, int first, int second, bool decoded, float confidence) {
    std::vector<Box> boxes;
    if (decoded) {
        for (int row = 0; row < first; ++row) {
            const float* found = output + row * second;
            if (found[4] > confidence) {
                boxes.push_back({found[0], found[1], found[2], found[3], found[4], static_cast<int>(found[5])});
            }
        }
        return boxes;
    }
    const int classes = first - 4, anchors = second;
    for (int anchor = 0; anchor < anchors; ++anchor) {
        int label = 0;
        for (int kind = 1; kind < classes; ++kind) {
            if (output[(4 + kind) * anchors + anchor] > output[(4 + label) * anchors + anchor]) label = kind;
        }
        const float score = output[(4 + label) * anchors + anchor];
        if (score <= confidence) continue;
        const float x = output[anchor], y = output[anchors + anchor];
        const float half_width = output[2 * anchors + anchor] / 2, half_height = output[3 * anchors + anchor] / 2;
        boxes.push_back({x - half_width, y - half_height, x + half_width, y + half_height, score, label});
    }
    return boxes;
}

inline float overlap(const Box& a, const Box& b) {
    const float width = std::min(a.right, b.right) - std::max(a.left, b.left);
    const float height = std::min(a.bottom, b.bottom) - std::max(a.top, b.top);
    if (width <= 0 || height <= 0) return 0;
    const auto area = [](const Box& box) { return (box.right - box.left) * (box.bottom - box.top); };
    return width * height / (area(a) + area(b) - width * height);
}

// Of boxes of one class that overlap, the surest stays.
inline std::vector<Box> suppress(std::vector<Box> boxes, float iou, size_t largest = 300) {
    std::sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
    std::vector<Box> kept;
    for (const Box& box : boxes) {
        const auto hides = [&](const Box& other) { return other.label == box.label && overlap(other, box) > iou; };
        if (kept.size() < largest && std::none_of(kept.begin(), kept.end(), hides)) kept.push_back(box);
    }
    return kept;
}

// From pixels of the input to those of the image.
inline void restore(std::vector<Box>& boxes, const Letterbox& frame, int height, int width) {
    for (Box& box : boxes) {
        const auto put = [](float value, int before, float scale, int limit) {
            return std::clamp((value - before) / scale, 0.0f, static_cast<float>(limit));
        };
        box.left = put(box.left, frame.left, frame.across, width), box.right = put(box.right, frame.left, frame.across, width);
        box.top = put(box.top, frame.top, frame.down, height), box.bottom = put(box.bottom, frame.top, frame.down, height);
    }
}

}  // namespace yolo
