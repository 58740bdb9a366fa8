'use strict';
for (const figure of document.querySelectorAll('figure.chart')) {
  const data = figure.querySelector('script');
  if (!data) continue;
  const { x: label, series } = JSON.parse(data.textContent);
  const svg = figure.querySelector('svg');
  const cursor = svg.querySelector('.cursor');
  const output = figure.querySelector('output');
  const places = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
  let at = -1;
  const nearest = (items, x, of) => items.reduce((best, item) => (Math.abs(of(item) - x) < Math.abs(of(best) - x) ? item : best));
  const show = (index) => {
    at = Math.min(Math.max(index, 0), places.length - 1);
    const x = places[at];
    cursor.setAttribute('x1', x);
    cursor.setAttribute('x2', x);
    cursor.setAttribute('visibility', 'visible');
    const readings = series.map(({ name, points }) => [name, nearest(points, x, (point) => point[0])]);
    const [, [, where]] = nearest(readings, x, (reading) => reading[1][0]);
    output.textContent = `${label} ${where}: ` + readings.map(([name, [, , y]]) => `${name} ${y}`).join(', ');
  };
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
    show(places.indexOf(nearest(places, x, (place) => place)));
  });
  svg.addEventListener('keydown', (event) => {
    const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: places.length - 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    show(steps[event.key]);
  });
}
