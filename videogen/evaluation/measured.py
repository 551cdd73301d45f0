"""How every metric of the protocols is measured, in words that stand beside its number."""

from videogen.evaluation.variety import MEASURE

MEASURED = {
    "psnr": "PSNR of pixels clamped and rounded to uint8, per frame; mean over frames, then clips",
    "ssim": "SSIM per frame and RGB channel, window 11; mean over frames, then clips",
    "gradient_sharpness": "1-Wasserstein distance of the frames' gradient magnitudes, in grey levels",
    "class_agreement": "share of frames whose likeliest class of EfficientNet-lite0 is the same before and after",
    "difference_psnr": "PSNR of the differences of neighbouring frames, a mean in dB over clips",
    "flicker_difference": "1 - mean absolute difference of neighbouring frames: of reconstructions less of originals",
    "written_bits_per_pixel": "bits of packed codes, or of a codec's files with headers, over the pixels of a clip",
    "prompt_fidelity": "shares of samples in which the judge reads what the prompt says, or of their frames",
    MEASURE: "root mean square difference of two samples of a prompt, pixels in [0, 1], and of two real clips of it",
    "captions": "shares of drawn captions of held-out clips that are captions, are right, name the right attribute",
    "signs": "shares of words, of sentences and of frames with the right shirt that the judge of signers reads",
    "hand_ssim": "SSIM of the windows whose middle is in the box of a hand of the original; mean over windows",
    "hand_distance": "of the middles of gloves that are seen on both sides, in units of the frame's sides; a mean",
    "retrieval": "recall at K in percent and ranks, every caption of a clip asks; a tie counts as its chance, equal "
    "captions are right for each other's clips, queries that are not finite are misses",
    "recognition": "percent of clips whose class is the likeliest, or of the first five; a tie counts as its chance",
    "answers": "share of questions whose likeliest option alone is right, and of written answers that are right letter "
    "by letter",
    "streams": "of turns with the truth given before each word, and of sessions with nothing given; an event is spoken "
    "about within two frames, everything else that is said unasked is false",
    "geneval": "of each task the share of samples that the judge finds right, and the mean of the six",
    "bits_per_pixel": "nominal: bits of all codes of a clip over its pixels",
}
"""Metric -> how it is measured, for the record of those that were."""
