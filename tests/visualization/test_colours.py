from vispeft.visualization.colours import spread_hue


def test_spread_hue__nearby_numbers_differ():
    hues = [spread_hue(number) for number in range(8)]
    assert all(0 <= hue < 1 for hue in hues)
    distances = [abs(a - b) for i, a in enumerate(hues) for b in hues[:i]]
    assert min(min(distance, 1 - distance) for distance in distances) > 0.05
